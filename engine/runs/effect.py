"""What was measured of one prompt in the model's answer: the numbers with the labels of their axes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from jaxtyping import Float

from engine.runs.jobs import in_order
from engine.tables.effects import build_effects
from engine.text.prompts import Prompt


@dataclass(frozen=True)
class Effect:
    """What the cases of one prompt do to the answer, with the keys hidden around each of ``layers`` (None: in all)."""

    prompt: Prompt
    layers: tuple[int | None, ...]
    tokens: tuple[int, ...]
    """The first position that each case hides."""
    names: tuple[str, ...]
    labels: Mapping[str, Sequence[object]]
    """More columns, with a value for each case."""
    numbers: Mapping[str, Float[np.ndarray, "l v"]]
    """The columns of numbers by name, NaN where undefined."""
    answers: tuple[str, ...]
    """The answer that is scored in each case."""
    top_tokens: tuple[tuple[str | None, ...], ...]
    """The most probable token of every run, by layer and case; None where undefined."""
    next_tokens: tuple[tuple[str, float], ...] = ()
    """The baseline's most probable next tokens with their probabilities, when they were asked for."""

    @property
    def num_rows(self) -> int:
        """Rows of the table."""
        return len(self.layers) * len(self.tokens)

    def joined(self, parts: Sequence[tuple[list[int], "Effect"]]) -> "Effect":
        """This effect with the cases of all parts, each of which comes with the places of its own."""
        order = np.argsort([case for cases, _ in parts for case in cases])
        found = [part for _, part in parts]
        last = max(parts, key=lambda pair: max(pair[0]))[1]  # it holds the last query that is read
        tops = zip(*(part.top_tokens for part in found), strict=True)
        return replace(
            last,
            tokens=in_order([part.tokens for part in found], order),
            names=in_order([part.names for part in found], order),
            labels={name: in_order([part.labels[name] for part in found], order) for name in self.labels},
            numbers={n: np.concatenate([part.numbers[n] for part in found], axis=1)[:, order] for n in self.numbers},
            answers=in_order([part.answers for part in found], order),
            top_tokens=tuple(in_order(row, order) for row in tops),
        )

    def table(self) -> pl.DataFrame:
        """The effects table: one row per layer and case."""
        return self.tables([self], [0]).drop("prompt_id")

    @staticmethod
    def tables(effects: Sequence["Effect"], prompt_ids: Sequence[int] | Sequence[str]) -> pl.DataFrame:
        """The tables of several prompts of one task, one after the other, with ``prompt_id`` in front."""
        first = effects[0]
        return build_effects(
            {name: [effect.numbers[name] for effect in effects] for name in first.numbers},
            prompt_ids=prompt_ids,
            layers=first.layers,
            positions=[effect.tokens for effect in effects],
            pieces=[effect.names for effect in effects],
            labels={name: [effect.labels[name] for effect in effects] for name in first.labels},
            answers=[effect.answers for effect in effects],
            top_tokens=[effect.top_tokens for effect in effects],
        )
