"""The end of a run: the pieces of the small tables become one file each, and the receipts a table."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import polars as pl
from polars import selectors

from engine.datasets.folder import IMPACTS, MERGED, RECEIPTS, Folder, writing
from engine.datasets.frames import empty_frame
from engine.datasets.orders import Receipt
from engine.datasets.receipts import facts_of


def merge(folder: Folder, run_id: str, receipts: Mapping[int, Receipt]) -> dict[str, list[Any]]:
    """Write the merged tables, unless that is done, and the table of receipts, in the order of the shards.

    Returns the sizes and digests of all of these by their names. Raises ``ResultsError``.
    """
    with writing(folder.path):
        return _merged(folder, run_id, receipts)


def _merged(folder: Folder, run_id: str, receipts: Mapping[int, Receipt]) -> dict[str, list[Any]]:
    ordered = [receipts[shard] for shard in sorted(receipts)]
    for name in () if folder.is_merged else MERGED:
        pieces = [path for path in folder.pieces(name) if int(path.stem.rpartition("-")[2]) in receipts]
        lazy = _together(pieces) if pieces else empty_frame(name).lazy()
        folder.put(run_id, folder.table(name), partial(_sink, lazy, folder.form))
    folder.put(run_id, folder.path / RECEIPTS, _receipt_table(folder, ordered).write_parquet)
    files = [*map(folder.table, MERGED), folder.path / RECEIPTS]
    return {path.name: list(facts_of(path)) for path in files}


def _together(pieces: list[Path]) -> pl.LazyFrame:
    """All pieces as one frame, of bounded memory; a column that is not of one type everywhere takes a wider one."""
    schemas = [tuple(pl.read_parquet_schema(path).items()) for path in pieces]
    wanted = _wide_schema(map(dict, schemas))
    runs = [list(run) for _, run in groupby(zip(pieces, schemas, strict=True), key=itemgetter(1))]
    return pl.concat(_fitted([path for path, _ in run], dict(run[0][1]), wanted) for run in runs)


def _wide_schema(schemas: Iterable[Mapping[str, pl.DataType]]) -> dict[str, pl.DataType]:
    """For each column the one type that it has, Float64 for numbers of several types, else String."""
    kinds: dict[str, set[pl.DataType]] = {}
    for schema in schemas:
        for name, kind in schema.items():
            kinds.setdefault(name, set()).add(kind)
    return {name: _wide(found - {pl.Null()}) for name, found in kinds.items()}


def _wide(kinds: set[pl.DataType]) -> pl.DataType:
    if len(kinds) < 2:
        return next(iter(kinds), pl.String())
    return pl.Float64() if all(kind.is_numeric() for kind in kinds) else pl.String()


def _fitted(pieces: list[Path], schema: Mapping[str, pl.DataType], wanted: Mapping[str, pl.DataType]) -> pl.LazyFrame:
    """Pieces of one schema with the columns that all shall have. A column's name may be "*": it is never a pattern."""
    lazy = pl.scan_parquet(pieces, glob=False)
    if list(schema.items()) == list(wanted.items()):
        return lazy
    columns = [
        selectors.by_name(name).cast(kind) if name in schema else pl.lit(None, dtype=kind).alias(name)
        for name, kind in wanted.items()
    ]
    return lazy.select(columns)


def _sink(lazy: pl.LazyFrame, form: str, path: Path) -> None:
    if form == "csv":
        lazy.sink_csv(path)
    else:
        lazy.sink_parquet(path, compression="zstd")


def _receipt_table(folder: Folder, receipts: list[Receipt]) -> pl.DataFrame:
    parts = [folder.piece(IMPACTS, receipt.shard).relative_to(folder.path).as_posix() for receipt in receipts]
    sizes = [receipt.files.get(part, (0, ""))[0] for part, receipt in zip(parts, receipts, strict=True)]
    counts = {
        name: pl.Series([receipt.counts.get(name, 0) for receipt in receipts], dtype=pl.Int64)
        for name in ("prompts", "rejected", "tokens", "rows")
    }
    texts = [json.dumps(asdict(receipt)) for receipt in receipts]
    return pl.DataFrame(
        {
            "shard": pl.Series([receipt.shard for receipt in receipts], dtype=pl.Int64),
            "part": pl.Series(parts, dtype=pl.String),
            **counts,
            "bytes": pl.Series(sizes, dtype=pl.Int64),
            "receipt": pl.Series(texts, dtype=pl.String),
        }
    )
