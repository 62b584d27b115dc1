"""Prompts that are ready to be measured, whole or in parts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, groupby
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from engine.questions.question import Question
from engine.text.plans import Itinerary, Plan, itinerary
from engine.text.prompts import Prompt


def in_order(parts: Sequence[Sequence[Any]], order: Int[np.ndarray, " v"]) -> tuple[Any, ...]:
    """The values of all parts, in the order of their places."""
    values = list(chain.from_iterable(parts))
    return tuple(values[place] for place in order)


@dataclass(frozen=True)
class Task:
    """What is asked of every prompt: a question, of some layers and, where single tokens are hidden, some tokens."""

    layers: tuple[int, ...]
    tokens: tuple[int, ...] | None = None
    question: Question = field(default_factory=Question)


@dataclass(frozen=True)
class Job:
    """A prompt with its cases; ``undefined`` are the cells without a value."""

    prompt: Prompt
    plan: Plan
    names: tuple[str, ...]
    """The text of what each case hides."""
    undefined: Bool[np.ndarray, "l v"]
    windows: tuple[tuple[int, int], ...] = ()
    """The layers that are cut together, where effects travel; none where every layer is cut on its own."""
    answer: tuple[int, ...] = ()
    """The tokens of the answer that is scored; none is the most probable one."""
    runs: Itinerary | None = None
    """The runs that the cases take, if they are known already: prompts of a length share them."""

    @property
    def num_cases(self) -> int:
        return len(self.plan)

    @property
    def num_rows(self) -> int:
        """Rows of a layer: one per token and one per variant, or per position at which a run differs."""
        return len(self.prompt) + (self.itinerary.num_rows if self.windows else self.num_cases)

    @cached_property
    def itinerary(self) -> Itinerary:
        """The runs that the cases take where effects travel."""
        return self.runs or itinerary(self.plan, self.windows, num_answer=max(1, len(self.answer)))

    @property
    def companions(self) -> object:
        """What jobs must have in common to share a pass in which effects travel."""
        return len(self.prompt), self.plan, len(self.answer)

    def parts(self, rows: int) -> Iterator[tuple[list[int], "Job"]]:
        """The cases in parts of about ``rows`` rows at most, with their places; those that share runs stay together."""
        if self.num_rows <= rows or self.num_cases == 1:
            yield list(range(self.num_cases)), self
            return
        per_case = max(1, (self.num_rows - len(self.prompt)) // self.num_cases)
        most = max(1, (rows - len(self.prompt)) // per_case)
        chunk: list[int] = []
        for same in self._inseparable():
            if chunk and len(chunk) + len(same) > most:
                yield sorted(chunk), self._part(sorted(chunk))
                chunk = []
            chunk += same
        yield sorted(chunk), self._part(sorted(chunk))

    def _inseparable(self) -> list[list[int]]:
        """Cases that share their runs: of one group, unless every query has a run of its own."""
        cases = range(self.num_cases)
        if not self.windows or self.plan.hidden_from == "query":
            return [[case] for case in cases]
        by_group = sorted(cases, key=lambda case: self.plan.groups[case])
        return [list(same) for _, same in groupby(by_group, key=lambda case: self.plan.groups[case])]

    def _part(self, cases: Sequence[int]) -> "Job":
        names = tuple(self.names[case] for case in cases)
        undefined = self.undefined[:, list(cases)]
        return replace(self, plan=self.plan.part(cases), names=names, undefined=undefined, runs=None)
