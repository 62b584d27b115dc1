"""Results files: an impact or effects table as CSV, Parquet or JSON lines; the suffix of the name says which.

A target holds the old table or the new one, never half of one. Reading is lazy: a file of any size is described,
checked and handed on as a ``LazyFrame``. Whatever goes wrong with a file is a ``ResultsError`` of one line.
"""

import glob
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import polars as pl

from engine.errors import ResultsError
from engine.files import (
    FilePath,
    new_file,
    one_line,
    require_readable,
    require_stdout,
    require_writable,
    shown,
    write_stdout,
)
from engine.tables.columns import CSV_TYPES, refilled, types_of, unfit

STDOUT = "-"
PROVENANCE_KEY = "mask_impact"
INFERRED_ROWS = 10_000

WRITERS: dict[str, Callable[[pl.DataFrame, IO[bytes], dict[str, str]], object]] = {
    ".csv": lambda table, file, _: table.write_csv(file),
    ".parquet": lambda table, file, metadata: table.write_parquet(file, compression="zstd", metadata=metadata),
    ".jsonl": lambda table, file, _: table.write_ndjson(file),
}


def write_table(table: pl.DataFrame, path: FilePath, *, provenance: Mapping[str, object] | None = None) -> None:
    """Write ``table`` to ``path`` (``.csv``, ``.parquet``, ``.jsonl``), or as CSV to standard output for ``-``.

    ``provenance`` says what produced the table: values that JSON can hold, kept in Parquet's metadata under
    ``PROVENANCE_KEY``. CSV and JSON lines have no place for it beside the table and go without. The file appears
    complete or not at all, with the permissions that ``open()`` would give it; a symbolic link is followed. Raises
    ``ResultsError`` for an unknown suffix, a folder or disk that does not take the file, and a table that holds NaN
    (undefined cells are null).
    """
    _require_no_nan(table)
    if os.fspath(path) == STDOUT:
        _write_csv_to_stdout(table)
        return
    write = WRITERS[_suffix(path)]
    metadata = {PROVENANCE_KEY: json.dumps(dict(provenance), allow_nan=False)} if provenance else {}
    try:
        with new_file(path) as file:
            write(table, file, metadata)
    except pl.exceptions.PolarsError as error:
        reason = one_line(str(error))[:200]
        raise ResultsError(
            f"{shown(path)} cannot be written: {reason}; choose another path or free some space on the disk"
        ) from error


def check_writable(path: FilePath) -> None:
    """Raise the ``ResultsError`` that ``write_table`` would raise for ``path``, before the work is done.

    Nothing is left behind and an existing file is not touched. Only how much the disk takes is not known in advance.
    """
    if os.fspath(path) == STDOUT:
        require_stdout()
        return
    _suffix(path)
    require_writable(path)


def scan_table(path: FilePath) -> pl.LazyFrame:
    """The table in ``path``, unread: a lazy frame with the columns of ``IMPACT_SCHEMA`` or ``EFFECT_SCHEMA``, and more.

    The name, the columns and their types are checked here; damage further down the file shows when it is collected,
    which belongs inside ``reading(path)``. From text files layers and positions come as Int32, numbers as Float32,
    ``variant`` as String; Parquet keeps its types (``variant`` may be Enum, Categorical or String). In CSV an empty
    token is the empty string, ``prompt_id`` is text, and types of unknown columns are guessed. The numbers of a
    float64 run keep all their digits in Parquet only: in text nothing tells them from float32. Raises ``ResultsError``.
    """
    require_readable(path)
    suffix = _suffix(path)
    with reading(path):
        schema = _scan(path, {}).collect_schema()
    if reason := unfit(schema):
        raise ResultsError(f"{shown(path)}{one_line(reason)}")
    lazy = _scan(path, types_of(schema.names()))
    return refilled(lazy) if suffix == ".csv" else lazy


def read_provenance(path: FilePath) -> dict[str, Any] | None:
    """What produced the table in ``path``, as ``write_table`` was told; None where the file does not say.

    Raises ``ResultsError`` for a Parquet file that cannot be read.
    """
    require_readable(path)
    if _suffix(path) != ".parquet":
        return None
    with reading(path), open(path, "rb") as file:  # noqa: PTH123 - a handle: polars reads some paths as patterns
        text = pl.read_parquet_metadata(file).get(PROVENANCE_KEY, "")
    try:
        found = json.loads(text)
        json.dumps(found, allow_nan=False)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


@contextmanager
def reading(path: FilePath) -> Iterator[None]:
    """Turn what polars or the system raise while ``path`` is scanned or collected into a ``ResultsError``."""
    try:
        yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, UnicodeError) as error:
        reason = one_line(str(error).strip().partition("\n")[0])[:200]
        kind = f"{Path(path).suffix[1:]} file" if Path(path).suffix else "dataset"
        raise ResultsError(f"{shown(path)} cannot be read: {reason}; is it damaged, cut off, or no {kind}?") from error


def _scan(path: FilePath, types: Mapping[str, type]) -> pl.LazyFrame:
    """``path`` by its suffix; ``types`` apply to JSON lines, CSV has its own and Parquet names them itself."""
    source = os.path.abspath(path)  # noqa: PTH100 - as text: polars reads "~" and "name://" in other paths
    match _suffix(path):
        case ".parquet":
            return pl.scan_parquet(source, glob=False, hive_partitioning=False)
        case ".csv":
            return pl.scan_csv(source, schema_overrides=CSV_TYPES, infer_schema_length=INFERRED_ROWS, glob=False)
        case _:
            return pl.scan_ndjson(
                glob.escape(source), schema_overrides=types, infer_schema_length=INFERRED_ROWS, low_memory=True
            )


def _require_no_nan(table: pl.DataFrame) -> None:
    for column in table.select(pl.col(pl.Float32, pl.Float64)):
        if column.is_nan().any():
            raise ResultsError(f"the table holds NaN in {column.name}; an undefined cell must be null: fill_nan(None)")


def _write_csv_to_stdout(table: pl.DataFrame) -> None:
    if table.is_empty():
        write_stdout(table.write_csv())
    for index, rows in enumerate(table.iter_slices(100_000)):
        write_stdout(rows.write_csv(include_header=index == 0))


def _suffix(path: FilePath) -> str:
    suffix = Path(path).suffix.lower()
    if suffix not in WRITERS:
        raise ResultsError(f"{shown(path)} has no suffix of a results file; end the name in .csv, .parquet or .jsonl")
    return suffix
