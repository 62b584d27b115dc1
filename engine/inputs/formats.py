"""Files of text that hold prompts, read row by row: plain lines, JSON lines and CSV.

Text is UTF-8, with or without a byte order mark. Bytes that are no UTF-8 become lone surrogates, which the engine
rejects prompt by prompt. A row that holds no prompt is an entry with a defect; an ``InputError`` is for a file that
cannot be read on. Blank lines after the last row of JSON lines and CSV are no rows.
"""

import csv
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import repeat
from typing import IO, NoReturn, TypeVar

from engine.errors import InputError
from engine.inputs.entries import Entry
from engine.inputs.fields import Fields, Wanted, brief

Row = TypeVar("Row", str, list[str])
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
LONGEST_CELL = 1 << 26
"""Characters; whatever is longer comes from a quotation mark that nobody closed."""


def text_entries(file: IO[bytes], wanted: Wanted) -> Iterator[Entry]:
    """Each line is a prompt, without its line ending and otherwise as it is."""
    for row, line in enumerate(_lines(file, wanted)):
        if line.endswith(b"\n"):
            line = line[: -2 if line.endswith(b"\r\n") else -1]
        yield Entry(row, row, line.decode("utf-8", "surrogateescape"))


def json_entries(file: IO[bytes], wanted: Wanted) -> Iterator[Entry]:
    """Each line is an object, or the prompt itself: a string or a list of token ids.

    The columns are those of the first object.
    """
    fields = Fields(wanted)
    texts = (line.decode("utf-8", "surrogateescape").strip() for line in _lines(file, wanted))
    for row, line in enumerate(_without_last_blanks(texts)):
        yield fields.defective(row, "", "the line is blank") if line is None else _json_entry(fields, row, line)


def csv_entries(file: IO[bytes], wanted: Wanted) -> Iterator[Entry]:
    """The first row names the columns; every value is text, an empty one null, except that a prompt can be empty."""
    texts = (line.decode("utf-8", "surrogateescape") for line in _lines(file, wanted))
    rows = _csv_rows(texts, wanted)
    header = next(rows, None)
    if header is None:
        return
    _check_header(header, wanted)
    fields = Fields(wanted)
    prompt_column = fields.choose(header)
    for row, cells in enumerate(_without_last_blanks(rows)):
        if cells is None:
            yield fields.defective(row, "", "the line is blank")
        elif len(cells) != len(header):
            defect = f"it has {_counted(len(cells), 'cell')}, the header has {len(header)}"
            yield fields.defective(row, ",".join(cells), defect)
        else:
            values = {name: cell or None for name, cell in zip(header, cells, strict=True)}
            yield fields.entry(row, values if values[prompt_column] else values | {prompt_column: ""})


def _json_entry(fields: Fields, row: int, line: str) -> Entry:
    try:
        value = _DECODER.decode(line)
        if not isinstance(value, dict):
            return fields.bare(row, value)
        if fields.prompt_column is None:
            fields.choose(list(value), [name for name, item in value.items() if isinstance(item, str)])
        return fields.entry(row, value)
    except InputError:
        raise
    except RecursionError:
        return fields.defective(row, line, "the line is JSON that is nested too deeply")
    except ValueError as error:
        return fields.defective(row, line, f"the line cannot be read as JSON: {_reason(error)}")


def _reason(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg.lower()} at character {error.pos + 1}"
    return brief(str(error), 200)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number there")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"{digits} is too large")
    return number


_DECODER = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite)


def _csv_rows(texts: Iterable[str], wanted: Wanted) -> Iterator[list[str]]:
    reader = csv.reader(texts, strict=True)
    while True:
        line = reader.line_num + 1
        before = csv.field_size_limit(LONGEST_CELL)  # for all readers of the process, so it is lent for one row
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(
                f"{wanted.name} cannot be read: the row that begins on line {line}: {error}; "
                "quote cells that hold commas, quotation marks or line breaks, and double quotation marks in them"
            ) from error
        finally:
            csv.field_size_limit(before)
        yield cells


def _check_header(header: list[str], wanted: Wanted) -> None:
    if "" in header or not header:
        place = header.index("") + 1 if header else 1
        raise InputError(f"{wanted.name} has no name for column {place}; name every column in its first row")
    name, count = Counter(header).most_common(1)[0]
    if count > 1:
        raise InputError(f"{wanted.name} has {count} columns {brief(name, 80)!r}; give each a name of its own")
    if len(header) == 1 and (marks := [mark for mark in ";\t|" if mark in header[0]]):
        raise InputError(f"the columns of {wanted.name} are separated by {marks[0]!r}; separate them by commas")


def _lines(file: IO[bytes], wanted: Wanted) -> Iterator[bytes]:
    """The lines of ``file`` with their endings, without a byte order mark."""
    first = next(iter(file), None)
    if first is None:
        return
    if first.startswith(UTF_16):
        raise InputError(f"{wanted.name} is UTF-16; save it as UTF-8")
    if first := first.removeprefix(BYTE_ORDER_MARK):
        yield first
    for line in file:  # noqa: UP028 - "yield from" would close standard input when a reader stops early
        yield line


def _without_last_blanks(rows: Iterable[Row]) -> Iterator[Row | None]:
    """``rows`` with None for each that is empty, up to the last that is not."""
    waiting = 0
    for row in rows:
        if not row:
            waiting += 1
            continue
        yield from repeat(None, waiting)
        waiting = 0
        yield row


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
