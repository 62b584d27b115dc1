"""Two result sets side by side: the means of the same prompt in both, paired as soon as both have been read.

Both are read in turn, a batch of each, so where the prompts stand in the same order only a few wait for their partner.
"""

from collections.abc import Iterator
from itertools import zip_longest

import polars as pl

from engine.findings.units import SERIES, By
from engine.tables.table import PROMPT_ID

TOKENS = By("tokens", ("token_position", "token_masked"), ("token_position", "token_masked"))
"""What a prompt consists of, as far as it was masked."""
SIGNATURE = "signature"
Means = dict[str, pl.DataFrame]


class Pairing:
    """The prompts of both sets that wait for their partner, and how many found none, or one with other tokens."""

    def __init__(self) -> None:
        self.paired, self.differing = 0, 0
        self._waiting: tuple[Means, Means] = ({}, {})

    @property
    def alone(self) -> tuple[int, int]:
        """How many prompts of each set have no partner."""
        first, second = (each[TOKENS.name].height if each else 0 for each in self._waiting)
        return first, second

    def pairs(self, first: Iterator[Means], second: Iterator[Means]) -> Iterator[Means]:
        """``prompt_id``, ``distance``, ``kind``, labels, ``mean`` and ``mean_b`` of prompts with the same tokens.

        ``first`` and ``second`` are those of ``units.finished``, with ``TOKENS`` among them.
        """
        for both in zip_longest(first, second, fillvalue=None):
            news = [_signed(each) if each is not None else {} for each in both]
            self._waiting = (_joined(self._waiting[0], news[0]), _joined(self._waiting[1], news[1]))
            if all(self._waiting):
                yield self._matched(*self._waiting)

    def _matched(self, a: Means, b: Means) -> Means:
        """The pairs among those that wait, which wait no more."""
        both = a[TOKENS.name].join(b[TOKENS.name], on=PROMPT_ID, suffix="_b", nulls_equal=True)
        same = both.filter(pl.col(SIGNATURE) == pl.col(f"{SIGNATURE}_b")).select(PROMPT_ID)
        self.paired += same.height
        self.differing += both.height - same.height
        self._waiting = (_without(a, both), _without(b, both))
        return {name: _side_by_side(a[name], b[name], same) for name in a if name != TOKENS.name}


def _signed(means: Means) -> Means:
    """``means`` with a prompt's tokens as one number."""
    tokens = means[TOKENS.name].select(PROMPT_ID, *TOKENS.labels).unique()
    token = pl.struct(TOKENS.labels).hash().alias(SIGNATURE)
    return means | {TOKENS.name: tokens.with_columns(token).group_by(PROMPT_ID).agg(pl.col(SIGNATURE).sum())}


def _joined(waiting: Means, new: Means) -> Means:
    if not waiting or not new:
        return waiting or new
    return {name: pl.concat([frame, new[name]]) for name, frame in waiting.items()}


def _without(means: Means, gone: pl.DataFrame) -> Means:
    return {name: frame.join(gone, on=PROMPT_ID, how="anti", nulls_equal=True) for name, frame in means.items()}


def _side_by_side(a: pl.DataFrame, b: pl.DataFrame, same: pl.DataFrame) -> pl.DataFrame:
    """The groups that a prompt has in both."""
    labels = [name for name in a.columns if name not in (PROMPT_ID, *SERIES, "mean")]
    kept = a.join(same, on=PROMPT_ID, nulls_equal=True)
    return kept.join(b, on=[PROMPT_ID, *SERIES, *labels], suffix="_b", nulls_equal=True)
