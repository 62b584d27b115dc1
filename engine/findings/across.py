"""What holds across prompts: means by token text, by place, by layer, by head, with confidence intervals.

One reading of the table; memory holds a batch, the groups, and the prompts' own means only where they are resampled.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import polars as pl

from engine.errors import ResultsError
from engine.findings.answers import KIND, MEASURES
from engine.findings.cells import BATCH_ROWS, DISTANCES, KINDS, cell_batches, variant_name
from engine.findings.intervals import FEW_PROMPTS, Bootstrap, Kept, Moments
from engine.findings.sums import rounded
from engine.findings.units import BYS, POSITION, QUERY, SERIES, By, PromptMeans, Together, finished
from engine.tables.batches import batches
from engine.tables.columns import is_effects
from engine.tables.table import PROMPT_ID

ENOUGH = 5


@dataclass(frozen=True, kw_only=True)
class Across:
    """Means over prompts, the prompt being the unit.

    ``groups`` has a row per distance (of effects: measure), kind and group: ``distance``, ``kind``, the labels (of
    heads ``layer`` and ``variant``), ``prompts`` that have it, ``mean`` over them, ``low`` and ``high`` of its 95 %
    confidence interval (null for one prompt), and of heads ``often``: the share of prompts in which the head is among
    the ``among`` of its prompt with the greatest means. Sorted by the mean's size, or in the groups' own order.
    ``bootstrap`` is None where the normal approximation was taken.
    """

    by: By
    prompts: int
    among: int
    min_count: int
    bootstrap: Bootstrap | None
    skip_first: bool
    groups: pl.DataFrame


def analyze_across(
    lazy: pl.LazyFrame,
    *,
    by: str,
    among: int = 10,
    min_count: int | None = None,
    bootstrap: Bootstrap | None = None,
    skip_first: bool = False,
    lengths: pl.DataFrame | None = None,
) -> Across:
    """Means over the prompts of an impact or effects table, by a name of ``units.BYS``.

    Changes of log-probability keep their sign, and are ranked by their size. Groups that fewer than ``min_count``
    prompts have are left out; by default that is 5 of 30 prompts or more, else 1. ``lengths`` as of ``PromptMeans``.
    Raises ``ResultsError`` for a table without defined values, without heads when they are asked for, with the rows of
    a prompt apart, and for a bootstrap beyond memory.
    """
    way, kept = BYS[by], Kept(bootstrap)
    moments, often = Moments([*SERIES, *way.labels]), Often(among) if by == "head" else None
    for part in _parts(lazy, way, skip_first=skip_first, lengths=lengths):
        moments.add(part)
        kept.add(part)
        if often is not None:
            often.add(part)
    if moments.frame.is_empty():
        raise ResultsError(f"there is nothing to compare by {by}: no value is defined, or no row is left")
    least = usual_min_count(kept.prompts) if min_count is None else min_count
    numbers = ("mean", "low", "high")
    groups = kept.intervals(moments).filter(pl.col("prompts") >= least)
    if often is not None:
        groups = groups.join(often.shares(), on=moments.by, how="left")
    return Across(
        by=way,
        prompts=kept.prompts,
        among=among,
        min_count=least,
        bootstrap=kept.drawn,
        skip_first=skip_first,
        groups=presented(groups, way, numbers=numbers, score="mean"),
    )


def _parts(lazy: pl.LazyFrame, way: By, *, skip_first: bool, lengths: pl.DataFrame | None) -> Iterator[pl.DataFrame]:
    """The means of the prompts, as they end."""
    together, means = Together(), {way.name: PromptMeans(way, lengths=lengths)}
    for found in finished(value_batches(lazy, [way], skip_first=skip_first), means):
        together.require(found[way.name][PROMPT_ID])
        if len(found[way.name]):
            yield found[way.name]


def usual_min_count(prompts: int) -> int:
    """In how many prompts a group has to be for its mean to be listed."""
    return ENOUGH if prompts >= FEW_PROMPTS else 1


class Often:
    """Of each head the number of prompts in which it is among the ``among`` greatest; ties by layer and head."""

    def __init__(self, among: int) -> None:
        self._among, self._parts = among, list[pl.DataFrame]()

    def add(self, part: pl.DataFrame) -> None:
        """Count in the means of prompts that have ended."""
        size = rounded("mean").abs().alias("size")
        ordered = part.with_columns(size).sort([PROMPT_ID, *SERIES, "size", "layer", "code"],
                                               descending=[False] * 3 + [True, False, False])  # fmt: skip
        leaders = ordered.group_by([PROMPT_ID, *SERIES], maintain_order=True).head(self._among)
        prompts = part.group_by(SERIES).agg(of=pl.col(PROMPT_ID).n_unique().cast(pl.Int64))
        hits = leaders.group_by(*SERIES, "layer", "code").agg(hits=pl.len().cast(pl.Int64))
        new = pl.concat([hits, prompts], how="diagonal")
        self._parts = [
            pl.concat([*self._parts, new]).group_by(*SERIES, "layer", "code").agg(pl.col("hits", "of").sum())
        ]

    def shares(self) -> pl.DataFrame:
        """``often`` of each head that is ever among them."""
        counted = self._parts[0]
        of = counted.filter(pl.col("layer").is_null()).select(*SERIES, "of")
        hits = counted.filter(pl.col("layer").is_not_null()).drop("of")
        return hits.join(of, on=SERIES).select(*SERIES, "layer", "code", often=pl.col("hits") / pl.col("of"))


def value_batches(lazy: pl.LazyFrame, ways: Sequence[By], *, skip_first: bool = False) -> Iterator[pl.DataFrame]:
    """The rows of either kind of table as what ``PromptMeans`` takes; a table without ``prompt_id`` is one prompt."""
    names = lazy.collect_schema().names()
    kept = lazy.filter(pl.col(POSITION).ne_missing(0)) if skip_first else lazy
    lacking = {PROMPT_ID: pl.lit(0), QUERY: pl.lit(None, dtype=pl.Int32)}
    kept = kept.with_columns(value.alias(name) for name, value in lacking.items() if name not in names)
    labels = list(dict.fromkeys([PROMPT_ID, *(name for way in ways for name in way.read), QUERY]))
    return _effect_batches(kept, labels) if is_effects(names) else cell_batches(kept, labels)


def measures_of(groups: pl.DataFrame) -> dict[str, str]:
    """The names of what a frame of findings measures, with the words for them."""
    found = set(groups["distance"])
    return {name: label for name, label in (DISTANCES | MEASURES).items() if name in found}


def _effect_batches(lazy: pl.LazyFrame, labels: Sequence[str]) -> Iterator[pl.DataFrame]:
    for batch in batches(lazy.select(*labels, *MEASURES), rows=BATCH_ROWS):
        yield pl.concat(
            batch.select(
                *labels, code=pl.lit(0), distance=pl.lit(name), kind=pl.lit(KIND), value=pl.col(name).cast(pl.Float64)
            )
            for name in MEASURES
        )


def presented(groups: pl.DataFrame, by: By, *, numbers: Sequence[str], score: str) -> pl.DataFrame:
    """Groups sorted by the size of ``score``, or in their own order, with variants by their names.

    ``numbers`` lose the digits that depend on the order of summation.
    """
    order = {name: place for place, name in enumerate([*DISTANCES, *MEASURES, *KINDS, KIND])}
    places = [pl.col(name).cast(pl.String).replace_strict(order, return_dtype=pl.Int32) for name in SERIES]
    exact = groups.with_columns(rounded(name) for name in numbers)
    ordered = exact.sort([*places, *([-pl.col(score).abs()] if by.ranked else []), *by.labels])
    shown = [variant_name() if name == "code" else name for name in by.labels if name not in ("beyond_first", "behind")]
    often = [pl.col("often").fill_null(0.0)] if "often" in groups.columns else []
    names = pl.col(SERIES).cast(pl.String)
    return ordered.select(names, *shown, "prompts", *numbers, *often)
