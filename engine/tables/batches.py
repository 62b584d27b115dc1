"""Rows in batches, all of them: of any number of rows, no more than a batch is in memory."""

from collections.abc import Iterator

import polars as pl

from engine.errors import ResultsError


def batches(lazy: pl.LazyFrame, *, rows: int) -> Iterator[pl.DataFrame]:
    """The rows of ``lazy`` in their order, about ``rows`` at a time.

    Where polars panics over a damaged file its batches end as if there were no more rows, so they are counted: of
    Parquet that takes a look at its footer. Raises ``ResultsError`` where some are missing.
    """
    read = 0
    # The one call here that polars may still change; other ways read a text file once for each sum.
    for batch in lazy.collect_batches(chunk_size=rows, maintain_order=True):
        read += len(batch)
        yield batch
    expected = lazy.select(pl.len()).collect(engine="streaming").item()
    if read != expected:
        raise ResultsError(f"only {read:,} of {expected:,} rows can be read; the file is damaged: write it again")
