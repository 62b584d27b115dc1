"""Parquet files that hold prompts, read in batches: of a large file one row group or so is in memory."""

from collections.abc import Iterator, Mapping
from typing import Any

from engine.errors import InputError
from engine.inputs.entries import Entry
from engine.inputs.fields import Fields, Wanted, brief

ROWS_AT_ONCE = 1024
MOST_SLICED = 1 << 31
"""From there on a limit is left to who takes the rows: polars counts them in 32 bits."""


def parquet_entries(path: str, wanted: Wanted, *, limit: int | None = None) -> Iterator[Entry]:
    """Values keep their types as far as Python has them; spans, times of day and nanoseconds become ISO text."""
    import polars as pl

    from engine.tables.batches import batches

    fields = Fields(wanted)
    try:
        lazy = pl.scan_parquet(path, glob=False, hive_partitioning=False)
        schema = lazy.collect_schema()
        fields.choose(schema.names(), [name for name, kind in schema.items() if _is_text(kind)])
        _check_prompt_type(schema, fields)
        as_iso = [name for name, kind in schema.items() if _is_finer_than_python(kind)]
        lazy = lazy.with_columns(pl.col(as_iso).dt.to_string())
        lazy = lazy.head(limit) if limit and limit < MOST_SLICED else lazy
        rows = (values for batch in batches(lazy, rows=ROWS_AT_ONCE) for values in batch.iter_rows(named=True))
        for row, values in enumerate(rows):
            yield fields.entry(row, values)
    except InputError:
        raise
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, ArithmeticError, LookupError, ValueError) as error:
        reason = brief(str(error).strip().partition("\n")[0], 200)
        raise InputError(
            f"{wanted.name} cannot be read: {reason}; is the file damaged, cut off, or no parquet file?"
        ) from error


def parquet_rows(path: str) -> int:
    """How many rows the file at ``path`` says it has."""
    import polars as pl

    lazy = pl.scan_parquet(path, glob=False, hive_partitioning=False)
    return int(lazy.select(pl.len()).collect().item())


def _is_text(kind: Any) -> bool:
    import polars as pl

    return kind in (pl.String, pl.Enum, pl.Categorical)


def _is_finer_than_python(kind: Any) -> bool:
    import polars as pl

    return kind in (pl.Time, pl.Duration) or (isinstance(kind, pl.Datetime) and kind.time_unit == "ns")


def _check_prompt_type(schema: Mapping[str, Any], fields: Fields) -> None:
    import polars as pl

    kind = schema[fields.prompt_column or ""]
    if not _is_text(kind) and not (isinstance(kind, pl.List | pl.Array) and kind.inner.is_integer()):
        raise InputError(
            f"{fields.wanted.name}: column {fields.prompt_column!r} is {brief(str(kind), 80)}, "
            "expected text or lists of token ids; choose another with --prompt-column"
        )
