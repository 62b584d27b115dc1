"""What changed from one result set to another: heads, token texts and layers, paired by prompt where prompts match."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import polars as pl

from engine.errors import ResultsError
from engine.findings.across import presented, usual_min_count, value_batches
from engine.findings.intervals import NORMAL_95, Bootstrap, Kept, Moments
from engine.findings.pairing import TOKENS, Means, Pairing
from engine.findings.units import BYS, SERIES, By, PromptMeans, Together, finished
from engine.tables.columns import is_effects
from engine.tables.table import PROMPT_ID

NUMBERS = ("mean_a", "mean_b", "difference", "low", "high", "relative")
VALUES = ("mean", "mean_b", "difference")
SHAPE = ("layer", "head")
USUAL = ("head", "text", "layer")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What changed from A to B.

    ``groups`` has a frame for each way of grouping: ``distance`` (of effects: measure), ``kind``, the labels,
    ``prompts``, ``mean_a``, ``mean_b``, ``difference`` (B - A), ``low`` and ``high`` of its 95 % confidence interval,,
    and ``relative``, the difference as a share of the mean in A (null where that is 0). With ``paired`` prompts all of
    this is over them, and the difference is taken within each; without any (``paired`` is 0) each set has its own
    prompts, and ``prompts`` is the smaller number. ``alone``: prompts without a partner; ``differing``: pairs of ids
    whose tokens differ, which are left out.
    """

    paired: int
    alone: tuple[int, int]
    differing: int
    min_count: int
    bootstrap: Bootstrap | None
    skip_first: bool
    groups: dict[str, pl.DataFrame]


def compare(
    a: pl.LazyFrame,
    b: pl.LazyFrame,
    *,
    by: Sequence[str] | None = None,
    min_count: int | None = None,
    bootstrap: Bootstrap | None = None,
    skip_first: bool = False,
    lengths: tuple[pl.DataFrame | None, pl.DataFrame | None] = (None, None),
) -> Comparison:
    """Compare two tables of one kind by the names of ``units.BYS`` (default: heads, texts and layers).

    Arguments otherwise as of ``across.analyze_across``. Raises ``ResultsError`` for an impact and an effects table
    together, for other layers or heads in one than in the other, and as ``analyze_across`` does.
    """
    effects = _kind_of_both(a, b)
    names = tuple(by or (name for name in USUAL if not (effects and name == "head")))
    tables = zip(_alike_ids(a, b), lengths, strict=True)
    first, second = (_Side(names, table, skip_first, length) for table, length in tables)
    pairing, pairs = Pairing(), _Pairs(names, bootstrap)
    for part in pairing.pairs(first.means(), second.means()):
        pairs.add(part)
    _require_alike(first, second)
    found = pairs.groups() if pairing.paired else {name: _unpaired(first.of(name), second.of(name)) for name in names}
    prompts = pairing.paired or min(first.prompts, second.prompts)
    least = usual_min_count(prompts) if min_count is None else min_count
    return Comparison(
        paired=pairing.paired,
        alone=pairing.alone,
        differing=pairing.differing,
        min_count=least,
        bootstrap=pairs.drawn if pairing.paired else None,
        skip_first=skip_first,
        groups={name: _ranked(frame.filter(pl.col("prompts") >= least), BYS[name]) for name, frame in found.items()},
    )


class _Pairs:
    """Means in both sets, and of the differences, over the pairs so far."""

    def __init__(self, names: Sequence[str], bootstrap: Bootstrap | None) -> None:
        self._kept = {name: Kept(bootstrap) for name in names}
        self._moments = {name: [Moments([*SERIES, *BYS[name].labels], value) for value in VALUES] for name in names}

    def add(self, pairs: Means) -> None:
        """Count in what ``Pairing.pairs`` found."""
        for name, kept in self._kept.items():
            part = pairs[name].with_columns(difference=pl.col("mean_b") - pl.col("mean"))
            if len(part):
                kept.add(part)
                for each in self._moments[name]:
                    each.add(part)

    def groups(self) -> dict[str, pl.DataFrame]:
        """The groups by each name, with intervals of the difference."""
        return {name: _paired(self._moments[name], kept) for name, kept in self._kept.items()}

    @property
    def drawn(self) -> Bootstrap | None:
        """How the intervals are drawn, if they are."""
        return next(iter(self._kept.values())).drawn


class _Side:
    """One of the two sets: its prompts' means as they are read, and the moments of all of them."""

    def __init__(
        self, names: Sequence[str], table: pl.LazyFrame, skip_first: bool, lengths: pl.DataFrame | None
    ) -> None:
        self.names, self._table, self._skip_first, self._lengths = names, table, skip_first, lengths
        self.prompts, self._together = 0, Together()
        self._moments = {name: Moments([*SERIES, *BYS[name].labels]) for name in dict.fromkeys([*names, *SHAPE])}

    def means(self) -> Iterator[Means]:
        """As of ``units.finished``."""
        ways = [*(BYS[name] for name in self._moments), TOKENS]
        means = {way.name: PromptMeans(way, lengths=self._lengths) for way in ways}
        for found in finished(value_batches(self._table, ways, skip_first=self._skip_first), means):
            self.prompts += self._together.require(found[TOKENS.name][PROMPT_ID])
            for name, each in self._moments.items():
                if len(found[name]):
                    each.add(found[name])
            yield {name: found[name] for name in (*self.names, TOKENS.name)}

    def of(self, name: str) -> pl.DataFrame:
        """The moments over this set's own prompts."""
        return self._moments[name].frame

    @property
    def shape(self) -> dict[str, set[tuple[object, ...]]]:
        """The layers and the heads that it has."""
        found = {"layer": ["layer"], "head": ["kind", "code"]}
        frames = {name: self.of(name) for name in found}
        return {name: set(frames[name].select(found[name]).rows()) if frames[name].width else set() for name in found}


def _kind_of_both(a: pl.LazyFrame, b: pl.LazyFrame) -> bool:
    """Whether both tables are of effects. Raises ``ResultsError`` where one is and the other is not."""
    effects = [is_effects(table.collect_schema().names()) for table in (a, b)]
    if effects[0] != effects[1]:
        words = ["effects on the answer" if each else "impacts" for each in effects]
        raise ResultsError(f"the first holds {words[0]}, the second {words[1]}; compare results of the same kind")
    return effects[0]


def _alike_ids(a: pl.LazyFrame, b: pl.LazyFrame) -> tuple[pl.LazyFrame, pl.LazyFrame]:
    """Both tables with ids of one type: text, where they are not the same already."""
    kinds = [table.collect_schema().get(PROMPT_ID, pl.Int32()) for table in (a, b)]
    if kinds[0] == kinds[1]:
        return a, b
    text = pl.col("^prompt_id$").cast(pl.String)
    return a.with_columns(text), b.with_columns(text)


def _require_alike(a: _Side, b: _Side) -> None:
    """Raise ``ResultsError`` unless both have the same layers and heads, and anything at all."""
    for place, side in (("first", a), ("second", b)):
        if not side.prompts:
            raise ResultsError(f"the {place} has nothing to compare: no value is defined, or no row is left")
    for name in SHAPE:
        counts = [len(side.shape[name]) for side in (a, b)]
        if a.shape[name] != b.shape[name]:
            told = "others" if counts[0] == counts[1] else f"{counts[1]}"
            raise ResultsError(
                f"the first has {counts[0]} {name}s, the second {told}; compare results of the same model and question"
            )


def _paired(moments: Sequence[Moments], kept: Kept) -> pl.DataFrame:
    """Means in both and of the difference, over the pairs."""
    first, second, difference = moments
    if difference.frame.is_empty():
        raise ResultsError("the pairs of prompts have no defined value in common; give results of the same question")
    found = kept.intervals(difference, "difference").rename({"mean": "difference"})
    for name, each in (("mean_a", first), ("mean_b", second)):
        found = found.join(each.frame.select(*each.by, pl.col("mean").alias(name)), on=each.by, nulls_equal=True)
    return found


def _unpaired(a: pl.DataFrame, b: pl.DataFrame) -> pl.DataFrame:
    """Means over each set's own prompts; the variances of the two means add up (Welch)."""
    by = [name for name in a.columns if name not in ("prompts", "mean", "m2")]
    both = a.rename({"mean": "mean_a"}).join(b.rename({"mean": "mean_b"}), on=by, suffix="_b", nulls_equal=True)
    difference = pl.col("mean_b") - pl.col("mean_a")
    fewer = pl.min_horizontal("prompts", "prompts_b")
    variance = _of_mean("") + _of_mean("_b")
    half = pl.when(fewer > 1).then(NORMAL_95 * variance.sqrt())
    return both.with_columns(difference=difference, low=difference - half, high=difference + half, prompts=fewer)


def _of_mean(suffix: str) -> pl.Expr:
    """The variance of a mean."""
    n = pl.col(f"prompts{suffix}")
    return pl.col(f"m2{suffix}") / (n - 1) / n


def _ranked(frame: pl.DataFrame, by: By) -> pl.DataFrame:
    share = pl.when(pl.col("mean_a") != 0).then(pl.col("difference") / pl.col("mean_a").abs())
    return presented(frame.with_columns(relative=share), by, numbers=NUMBERS, score="difference")
