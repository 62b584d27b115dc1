"""Files of spans: what is hidden together in which prompt, a row a span.

A row gives token ``positions`` (``1+2+3``, or a list of whole numbers), or ``start`` and ``end``: characters of the
prompt's text with ``end`` EXCLUSIVE, as in every span file of the field (lists on the command line include both
ends). ``name`` and ``prompt_id`` can be left out; other columns are not read.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import polars as pl

from engine.errors import InputError, SelectionError
from engine.files import FilePath, shown
from engine.questions.indices import parse_indices

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Span:
    """Positions, or characters (first, past the last), of the prompt ``prompt_id`` (as text; None: of every prompt)."""

    prompt_id: str | None
    name: str | None
    positions: tuple[int, ...]
    characters: tuple[int, int] | None


def read_spans(path: FilePath) -> tuple[Span, ...]:
    """The spans of ``path`` (.jsonl, .json, .csv or .parquet), in the order of its rows. Raises ``InputError``."""
    name, suffix = shown(path), Path(path).suffix.lower()
    if suffix not in _READERS:
        raise InputError(f"{name} is no file of spans by its name; end it in {', '.join(_READERS)}")
    try:
        rows = list(_READERS[suffix](Path(path).read_bytes()))
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror or error}; check the path") from error
    except (ValueError, *_POLARS_ERRORS) as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise InputError(f"{name} cannot be read: {reason}; is it damaged, cut off, or no {suffix}?") from error
    if not rows:
        raise InputError(f"{name} holds no spans; give a file with at least one")
    columns = list(dict.fromkeys(column for _, row in rows for column in row))
    if "positions" not in columns and not {"start", "end"} <= set(columns):
        listed = ", ".join(map(repr, columns))[:200]
        raise InputError(f"{name} has no column 'positions', nor 'start' and 'end'; its columns are: {listed}")
    return tuple(_span(row, f"{name}, {place}") for place, row in rows)


def parse_group(text: str, *, what: str) -> tuple[int, ...]:
    """The positions of ``1+2+3`` or ``1-3``, sorted and each once. Raises ``SelectionError``."""
    if "," in text:
        raise SelectionError(f"{what} {text!r:.60} is not one group of positions; write it like 1+2+3 or 1-3")
    return tuple(sorted({index for part in text.split("+") for index in parse_indices(part, what=what)}))


def index_list(values: object, *, what: str) -> tuple[int, ...]:
    """A list of positions, sorted and each once. Raises ``SelectionError`` for none and for what is no such list."""
    listed = values.tolist() if hasattr(values, "tolist") else values
    if isinstance(listed, Sequence) and not isinstance(listed, str) and listed:
        whole = [int(each) for each in listed if _is_whole(each)]
        if len(whole) == len(listed) and min(whole) >= 0:
            return tuple(sorted(set(whole)))
    raise SelectionError(f"{what} {values!r:.60} is no group of positions; give whole numbers from 0, such as [1, 2]")


def _span(row: Row, place: str) -> Span:
    """One row; ``place`` says which in an error."""
    values = {column: _plain(row.get(column)) for column in ("prompt_id", "name", "positions", "start", "end")}
    prompt_id, name = (None if each is None else str(each) for each in (values["prompt_id"], values["name"]))
    positions, start, end = values["positions"], values["start"], values["end"]
    if (positions is None) == (start is None and end is None):
        raise InputError(f"{place} gives {_given(values)}; give either positions, or start and end")
    if positions is None:
        return Span(prompt_id, name, (), _characters(start, end, place))
    try:
        read = parse_group if isinstance(positions, str) else index_list
        return Span(prompt_id, name, read(positions, what=f"{place}: positions"), None)
    except SelectionError as error:
        raise InputError(str(error)) from None


def _characters(start: Any, end: Any, place: str) -> tuple[int, int]:
    try:
        first, past = int(str(start)), int(str(end))
    except ValueError:
        first, past = 0, 0
    if not 0 <= first < past:
        raise InputError(f"{place} goes from {start!r:.40} to {end!r:.40}; give start from 0 on, and end behind it")
    return first, past


def _given(values: Row) -> str:
    return " and ".join(column for column in ("positions", "start", "end") if values[column] is not None) or "no span"


def _plain(value: Any) -> Any:
    """A cell: what says nothing is None, and a whole number is one even where a file knows only floats."""
    if value == "" or value != value:
        return None
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _is_whole(value: object) -> bool:
    if isinstance(value, float):
        return value.is_integer()
    return hasattr(value, "__index__") and not isinstance(value, bool)


def _json_rows(data: bytes) -> Iterator[tuple[str, Row]]:
    values = _parsed(data, "the file")
    if not isinstance(values, list):
        raise ValueError("it is no list of objects")
    for number, value in enumerate(values, start=1):
        yield f"entry {number}", _object(value, f"entry {number}")


def _json_line_rows(data: bytes) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            yield f"line {number}", _object(_parsed(line, f"line {number}"), f"line {number}")


def _parsed(data: bytes, place: str) -> Any:
    try:
        return json.loads(data.decode("utf-8-sig"))
    except RecursionError:
        raise ValueError(f"{place} is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{place} is no JSON: {error}") from error


def _object(value: object, place: str) -> Row:
    if isinstance(value, dict):
        return value
    raise ValueError(f"{place} is no object such as {{'start': 4, 'end': 10}}")


def _frame_rows(frame: pl.DataFrame) -> Iterator[tuple[str, Row]]:
    return ((f"row {number}", row) for number, row in enumerate(frame.iter_rows(named=True), start=1))


def _csv_rows(data: bytes) -> Iterator[tuple[str, Row]]:
    return _frame_rows(pl.read_csv(BytesIO(data), infer_schema=False))


def _parquet_rows(data: bytes) -> Iterator[tuple[str, Row]]:
    return _frame_rows(pl.read_parquet(BytesIO(data)))


_READERS = {
    ".jsonl": _json_line_rows,
    ".ndjson": _json_line_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}
_POLARS_ERRORS = (pl.exceptions.PolarsError, pl.exceptions.PanicException, ArithmeticError, LookupError)
