"""Means over prompts with 95 % confidence intervals: by the normal approximation, or by the bootstrap.

The bootstrap draws whole prompts with replacement and takes the 2.5th and the 97.5th percentile of the means. It is
the default for fewer than ``FEW_PROMPTS`` prompts, where the normal approximation is too narrow and too symmetric.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import polars as pl
from jaxtyping import Float

from engine.errors import ResultsError
from engine.tables.table import PROMPT_ID

NORMAL_95 = 1.959963984540054
FEW_PROMPTS, FEW_RESAMPLES = 30, 2_000
MOST_DRAWN = 100_000_000
GROUPS_AT_ONCE = 256
PERCENTILES = (2.5, 97.5)


@dataclass(frozen=True)
class Bootstrap:
    """How often prompts are drawn anew, and from which seed."""

    resamples: int
    seed: int = 0


class Moments:
    """Per group over prompts: ``prompts``, ``mean`` and the squared deviations ``m2``, merged part by part."""

    def __init__(self, by: Sequence[str], value: str = "mean") -> None:
        self.by, self._value, self.frame = list(by), value, pl.DataFrame()

    def add(self, part: pl.DataFrame) -> None:
        """Count in ``part``, a row per prompt and group (Chan, Golub and LeVeque, 1979)."""
        one, n, mean = pl.col(self._value), pl.col("prompts"), pl.col("mean")
        new = part.group_by(self.by).agg(
            prompts=one.count().cast(pl.Int64), mean=one.mean(), m2=one.var(ddof=0) * one.count()
        )
        total = (n * mean).sum() / n.sum()
        m2 = pl.col("m2").sum() + (n * (mean - total) ** 2).sum()
        both = pl.concat([self.frame, new]) if self.frame.width else new
        self.frame = both.group_by(self.by).agg(n.sum(), mean=total, m2=m2) if self.frame.width else new


class Kept:
    """The means of all prompts, as long as a bootstrap may need them: a row per prompt and group."""

    def __init__(self, bootstrap: Bootstrap | None) -> None:
        self.bootstrap, self.prompts, self._parts = bootstrap, 0, list[pl.DataFrame]()

    def add(self, part: pl.DataFrame) -> None:
        """Keep ``part``, whose prompts are new. Raises ``ResultsError`` where resampling would not fit into memory."""
        self.prompts += part[PROMPT_ID].n_unique()
        if self.bootstrap:
            require_drawable(self.prompts, self.bootstrap)
        if self.bootstrap or self.prompts < FEW_PROMPTS:
            self._parts.append(part)
        else:
            self._parts.clear()

    @property
    def drawn(self) -> Bootstrap | None:
        """The bootstrap that was asked for, else one for few prompts, else none."""
        return self.bootstrap or (Bootstrap(FEW_RESAMPLES) if self.prompts < FEW_PROMPTS else None)

    def intervals(self, moments: Moments, value: str = "mean") -> pl.DataFrame:
        """The groups of ``moments`` with ``low`` and ``high``."""
        if self.drawn is None or moments.frame.is_empty():
            return normal_intervals(moments.frame)
        values = pl.concat(self._parts)
        return bootstrap_intervals(moments.frame.sort(moments.by), values, moments.by, self.drawn, value=value)


def normal_intervals(groups: pl.DataFrame) -> pl.DataFrame:
    """``groups`` with ``low`` and ``high``: mean ± 1.96 standard errors; null for a single prompt."""
    n = pl.col("prompts")
    half = pl.when(n > 1).then(NORMAL_95 * (pl.col("m2") / (n - 1) / n).sqrt())
    return groups.with_columns(low=pl.col("mean") - half, high=pl.col("mean") + half)


def bootstrap_intervals(
    groups: pl.DataFrame, values: pl.DataFrame, by: Sequence[str], bootstrap: Bootstrap, *, value: str = "mean"
) -> pl.DataFrame:
    """``groups`` with ``low`` and ``high`` from resampled prompts; null where fewer than two prompts have the group.

    ``values`` are the means of all prompts, a row per prompt and group. Each resample draws as many prompts as there
    are; the mean of a group is taken over those drawn that have it.
    """
    ids = values[PROMPT_ID].unique().sort()
    numbers = pl.DataFrame({PROMPT_ID: ids, "_prompt": np.arange(len(ids))})
    keyed = groups.with_row_index("_group")
    cells = values.join(numbers, on=PROMPT_ID, nulls_equal=True).join(keyed, on=by, nulls_equal=True, suffix="_of_all")
    cells = cells.sort("_group").select("_group", "_prompt", value)
    weights = _weights(len(ids), bootstrap)
    ends = np.searchsorted(cells["_group"].to_numpy(), np.arange(0, len(groups) + GROUPS_AT_ONCE, GROUPS_AT_ONCE))
    bounds = [_bounds(cells[a:b], weights) for a, b in pairwise(ends.tolist()) if b > a]
    low, high = np.concatenate(bounds).T
    several = pl.col("prompts") > 1
    drawn = groups.with_columns(low=pl.Series(low), high=pl.Series(high))
    return drawn.with_columns(pl.when(several).then(name).alias(name) for name in ("low", "high"))


def require_drawable(prompts: int, bootstrap: Bootstrap) -> None:
    """Raise ``ResultsError`` where resampling would not fit into memory."""
    if prompts * bootstrap.resamples > MOST_DRAWN:
        raise ResultsError(
            f"{bootstrap.resamples:,} resamples of {prompts:,} prompts or more are too many to hold; give --bootstrap "
            "a smaller number, or leave it out: the normal interval is as good for so many prompts"
        )


def _weights(prompts: int, bootstrap: Bootstrap) -> Float[np.ndarray, "resample prompt"]:
    """How often each resample holds each prompt."""
    random, weights = np.random.default_rng(bootstrap.seed), np.empty((bootstrap.resamples, prompts), np.float32)
    for row in weights:
        row[:] = np.bincount(random.integers(0, prompts, prompts), minlength=prompts)
    return weights


def _bounds(cells: pl.DataFrame, weights: Float[np.ndarray, "resample prompt"]) -> Float[np.ndarray, "group 2"]:
    """The percentiles of some groups, all of which have cells."""
    group, prompt = cells["_group"].to_numpy(), cells["_prompt"].to_numpy()
    group = group - group[0]
    values, present = np.zeros((2, int(group[-1]) + 1, weights.shape[1]))
    values[group, prompt], present[group, prompt] = cells[:, -1].to_numpy(), 1
    held = weights @ present.T
    means = np.divide(weights @ values.T, held, out=np.full(held.shape, np.nan), where=held > 0)
    percentile = np.nanpercentile if np.isnan(means).any() else np.percentile
    return percentile(means, PERCENTILES, axis=0).T
