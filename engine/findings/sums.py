"""Sums over the cells of a table: each is taken batch by batch and merged, so memory holds no more than its result."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from engine.findings.cells import DISTANCES, KINDS

PENDING_ROWS = 2_000_000
SIGNIFICANT_DIGITS = 9


@dataclass(frozen=True)
class Sum:
    """``take`` makes a small frame from one batch of cells, ``merge`` makes one from several of them."""

    take: Callable[[pl.LazyFrame], pl.LazyFrame]
    merge: Callable[[pl.DataFrame], pl.DataFrame]


def summed(batches: Iterable[pl.DataFrame], sums: Mapping[str, Sum]) -> dict[str, pl.DataFrame]:
    """The result of each of ``sums`` after one reading of ``batches``; nothing at all where there is no batch."""
    parts: dict[str, list[pl.DataFrame]] = {}
    for batch in batches:
        taken = pl.collect_all([one.take(batch.lazy()) for one in sums.values()], engine="streaming")
        for name, frame in zip(sums, taken, strict=True):
            parts[name] = _bounded([*parts.get(name, []), frame], sums[name])
    return {name: sums[name].merge(pl.concat(frames)) for name, frames in parts.items()}


def moments(by: Sequence[str]) -> Sum:
    """Per group: rows, defined values (``count``), ``infinite`` ones, ``mean``, squared deviations ``m2``, bounds."""
    value = pl.col("value").cast(pl.Float64)
    found = {
        "rows": pl.len().cast(pl.Int64),
        "count": value.count().cast(pl.Int64),
        "infinite": value.is_finite().not_().sum().cast(pl.Int64),
        "mean": value.mean(),
        "m2": value.var(ddof=0) * value.count(),
        "min": value.min(),
        "max": value.max(),
    }
    return Sum(lambda cells: cells.group_by(by).agg(**found), lambda parts: pooled(parts, by))


def leading(by: Sequence[str], labels: Sequence[str], *, top: int) -> Sum:
    """``moments`` of the groups that may lead: those of a prompt that lies in a batch whole compete there already.

    For tables in which the rows of a prompt follow one another. The prompts at the edges of a batch keep all groups.
    """
    whole = moments(by)
    edges = (pl.col("prompt_id") == pl.col("prompt_id").first()) | (pl.col("prompt_id") == pl.col("prompt_id").last())

    def take(cells: pl.LazyFrame) -> pl.LazyFrame:
        marked = cells.with_columns(edge=edges)
        inside = whole.take(marked.filter(~pl.col("edge")))
        return pl.concat([whole.take(marked.filter("edge")), best(inside, "mean", labels, top=top)])

    return Sum(take, whole.merge)


def best(frame: pl.LazyFrame, score: str, labels: Sequence[str], *, top: int) -> pl.LazyFrame:
    """The ``top`` rows of each distance and kind by ``score``, the greatest first, ties by ``labels``."""
    descending = [False, False, True, *(False for _ in labels)]
    ordered = scored(frame, score).sort(["distance", "kind", score, *labels], descending=descending)
    return ordered.group_by("distance", "kind", maintain_order=True).head(top).select(frame.collect_schema().names())


def scored(frame: pl.LazyFrame, score: str) -> pl.LazyFrame:
    """The rows that have a ``score``, without the digits that depend on the order of summation."""
    return frame.drop_nulls(score).with_columns(rounded(score))


def rounded(name: str) -> pl.Expr:
    """A number without the digits that depend on the order of summation, and would break ties by chance."""
    return pl.col(name).cast(pl.Float64).round_sig_figs(SIGNIFICANT_DIGITS)


def pooled(parts: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
    """The moments of larger groups from those of their parts (Chan, Golub and LeVeque, 1979)."""
    count, mean = pl.col("count"), pl.col("mean")
    total = pl.when(count.sum() > 0).then((count * mean).sum() / count.sum())
    return parts.group_by(by).agg(
        pl.col("rows", "count", "infinite").sum(),
        mean=total,
        m2=pl.col("m2").sum() + (count * (mean - total) ** 2).sum(),
        min=pl.col("min").min(),
        max=pl.col("max").max(),
    )


def greatest(labels: Sequence[str], *, top: int) -> Sum:
    """The ``top`` greatest values of each distance and kind; equal ones in the order of ``labels``."""
    by, reverse = ["value", *labels], [False, *(True for _ in labels)]

    def best(cells: pl.LazyFrame) -> pl.LazyFrame:
        groups = [cells.filter(distance=distance, kind=kind) for distance in DISTANCES for kind in KINDS]
        return pl.concat(group.drop_nulls("value").top_k(top, by=by, reverse=reverse) for group in groups)

    return Sum(best, lambda parts: best(parts.lazy()).collect())


def distinct(columns: Sequence[str]) -> Sum:
    """The different values of ``columns``."""
    return Sum(lambda cells: cells.select(columns).unique(), pl.DataFrame.unique)


def _bounded(frames: list[pl.DataFrame], one: Sum) -> list[pl.DataFrame]:
    """``frames`` as one where those after the first have become long together."""
    return [one.merge(pl.concat(frames))] if sum(map(len, frames[1:])) > PENDING_ROWS else frames
