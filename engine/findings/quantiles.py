"""Exact quantiles in bounded memory, from two readings of the cells.

The first reading counts values in buckets; it tells in which bucket the value of a rank lies. The second counts the
values of these few buckets one by one. A *place* is an integer that orders all values of all variants: distance and
variant in the upper 32 bits, the value in the lower ones.
"""

import numpy as np
import polars as pl

from engine.findings.cells import DISTANCES, cell_batches
from engine.findings.sums import Sum, summed

QUANTILES = {"q05": 0.05, "q25": 0.25, "q50": 0.50, "q75": 0.75, "q95": 0.95}
BUCKET_SIZE = 65536  # neighbouring float32 values in one bucket: a width of 0.8 %

_SIGN_BIT = pl.lit(2**31, dtype=pl.UInt32)


def bucket_histogram() -> Sum:
    """How many defined values are in each bucket: the first reading."""
    return _histogram(_place() // BUCKET_SIZE)


def quantiles(lazy: pl.LazyFrame, series: pl.DataFrame, histogram: pl.DataFrame) -> pl.DataFrame:
    """The quantiles of each distance and variant, linear between neighbours, a column each.

    ``series`` names ``distance`` and ``code`` with the ``count`` of defined values, ``histogram`` is that of buckets.
    """
    series = series.filter(pl.col("count") > 0).sort("code", "distance")
    count = series["count"].to_numpy()[:, None]
    steps = np.array(list(QUANTILES.values())) * (count - 1)
    low = np.floor(steps).astype(np.int64)
    ranks = np.stack([low, np.ceil(steps).astype(np.int64)]) + np.cumsum(count)[:, None] - count
    lower, upper = _values_at(ranks, lazy, histogram)
    values = dict(zip(QUANTILES, (lower + (upper - lower) * (steps - low)).T, strict=True))
    return series.select("distance", "code").with_columns(pl.Series(name, column) for name, column in values.items())


def _values_at(ranks: np.ndarray, lazy: pl.LazyFrame, histogram: pl.DataFrame) -> np.ndarray:
    """The values at ``ranks`` in the order of places: the second reading."""
    buckets, before = _located(ranks, histogram)
    wanted = pl.Series(np.unique(buckets))
    chosen = (batch.filter((_place() // BUCKET_SIZE).is_in(wanted.implode())) for batch in cell_batches(lazy, []))
    exact = summed(chosen, {"exact": _histogram(_place())})["exact"].sort("place")
    ends = np.cumsum(np.append(0, exact["count"].to_numpy()))
    first = np.searchsorted(exact["place"].to_numpy(), buckets * np.uint64(BUCKET_SIZE))
    places, _ = _located(ends[first] + ranks - before, exact)
    return _values_of(places)


def _located(ranks: np.ndarray, histogram: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """The place on which each of ``ranks`` falls, and how many values come before that place."""
    ladder = histogram.sort("place")
    count = ladder["count"].to_numpy()
    ends = np.cumsum(count)
    index = np.searchsorted(ends, ranks, side="right")
    return ladder["place"].to_numpy()[index], ends[index] - count[index]


def _histogram(place: pl.Expr) -> Sum:
    """How many defined values have each ``place``."""
    count = pl.len().cast(pl.Int64)
    return Sum(
        lambda cells: cells.drop_nulls("value").group_by(place=place).agg(count=count),
        lambda parts: parts.group_by("place").agg(pl.col("count").sum()),
    )


def _place() -> pl.Expr:
    bits = pl.col("value").reinterpret(dtype=pl.UInt32)
    ordered = pl.when(bits < _SIGN_BIT).then(bits + _SIGN_BIT).otherwise(~bits)
    series = pl.col("code").cast(pl.UInt64) * len(DISTANCES) + pl.col("distance").to_physical()
    return series * 2**32 + ordered


def _values_of(places: np.ndarray) -> np.ndarray:
    """The values that went into ``places``, as float64."""
    bits = (places % 2**32).astype(np.uint32)
    return np.where(bits < 2**31, ~bits, bits - np.uint32(2**31)).view(np.float32).astype(np.float64)
