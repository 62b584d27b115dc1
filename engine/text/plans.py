"""What is asked of a prompt of one length: which keys are hidden, and which query is read; and the runs that takes.

A case is one group of hidden keys, read at one query. Cases are ordered by query, then by group.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import numpy as np
from jaxtyping import Bool

from engine.questions.question import HiddenFrom, Query
from engine.text.forks import Fork
from engine.text.knockouts import Knockouts, select

Positions = tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """The cases of a prompt: what each hides, from whom, and where it is read."""

    groups: tuple[Positions, ...]
    queries: Positions
    hidden_from: HiddenFrom

    def __len__(self) -> int:
        return len(self.groups)

    def part(self, cases: Sequence[int]) -> "Plan":
        """Some of the cases."""
        return Plan(tuple(self.groups[c] for c in cases), tuple(self.queries[c] for c in cases), self.hidden_from)

    @cached_property
    def readings(self) -> tuple[Knockouts, ...]:
        """Every query with what is hidden from it, for layers that are cut on their own."""
        pairs = groupby(zip(self.queries, self.groups, strict=True), key=lambda pair: pair[0])
        sees_itself = self.hidden_from == "others"
        return tuple(Knockouts(query, tuple(group for _, group in same), sees_itself) for query, same in pairs)

    def undefined(self, window: int | None) -> Bool[np.ndarray, " v"]:
        """True for cases that leave their query without any visible key."""
        return np.concatenate([knockouts.undefined(window) for knockouts in self.readings])


def plan_cases(
    groups: Iterable[Positions], query: Query, hidden_from: HiddenFrom, *, num_tokens: int
) -> tuple[Plan, tuple[int, ...]]:
    """The cases of a prompt, and the group of each; a query sees no key after it, so such groups are left out there.

    Raises ``SelectionError`` for a query position that the prompt does not have.
    """
    groups = list(groups)
    queries = (
        {"last": (num_tokens - 1,), "all": tuple(range(num_tokens))}.get(query) if isinstance(query, str) else query
    )
    queries = select(queries, num_tokens, what="query position")
    cases = [(q, index) for q in queries for index, group in enumerate(groups) if group[0] <= q]
    plan = Plan(tuple(groups[index] for _, index in cases), tuple(q for q, _ in cases), hidden_from)
    return plan, tuple(index for _, index in cases)


@dataclass(frozen=True)
class Itinerary:
    """The runs that a plan takes where effects travel, and which of them, read where, is each case.

    ``asked`` goes window by window, and in each case by case.
    """

    forks: tuple[Fork, ...]
    asked: tuple[tuple[int, int], ...]

    @cached_property
    def num_rows(self) -> int:
        """Rows that the last layer computes for the forks."""
        return sum(fork.num_rows for fork in self.forks)


def itinerary(plan: Plan, windows: Sequence[tuple[int, int]], *, num_answer: int = 1) -> Itinerary:
    """The runs of a plan in every window of layers (first, last + 1); equal ones are made once.

    ``num_answer``: tokens of the answer, each predicted one position after the other.
    """
    furthest = max(plan.queries) + num_answer
    forks: dict[Fork, int] = {}
    asked = []
    for first, last in windows:
        for group, query in zip(plan.groups, plan.queries, strict=True):
            start, stop = _span(plan.hidden_from, group, query, query + num_answer, furthest)
            fork = Fork(group, first, last, start, stop, plan.hidden_from == "others")
            asked.append((forks.setdefault(fork, len(forks)), query))
    return Itinerary(tuple(forks), tuple(asked))


def _span(hidden_from: HiddenFrom, group: Positions, query: int, after: int, furthest: int) -> tuple[int, int]:
    """The first position that differs, and the one after the last that is needed."""
    if hidden_from == "query":
        return query, after
    return min(group[0] + (hidden_from == "others"), furthest), furthest


def windows_of(window: int | None, layers: Sequence[int], num_layers: int) -> list[tuple[int, int]]:
    """The layers that are cut together around each of ``layers``, clipped to the model; once all layers for None."""
    if window is None:
        return [(0, num_layers)]
    starts = [layer - window // 2 for layer in layers]
    return [(max(0, start), min(num_layers, start + window)) for start in starts]
