"""What was measured of one prompt in its layers: the numbers with the labels of their axes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import polars as pl
from jaxtyping import Float

from engine.runs.jobs import in_order
from engine.tables.table import build_tables
from engine.text.prompts import Prompt


@dataclass(frozen=True)
class Impact:
    """The measured impact of one prompt's tokens; ``distances`` are (L2, cosine), NaN where undefined."""

    prompt: Prompt
    layers: tuple[int, ...]
    tokens: tuple[int, ...]
    """The first position that each case hides."""
    variants: tuple[str, ...]
    distances: Float[np.ndarray, "l v site 2"]
    next_tokens: tuple[tuple[str, float], ...] = ()
    """The baseline's most probable next tokens with their probabilities, when they were asked for."""
    names: tuple[str, ...] | None = None
    """The text of what each case hides; None where it is the token's."""
    labels: Mapping[str, Sequence[object]] = field(default_factory=dict)
    """More columns, with a value for each case."""
    cells: Mapping[str, Float[np.ndarray, "l v site"]] = field(default_factory=dict)
    """More columns, with a value for each cell."""

    @property
    def num_rows(self) -> int:
        """Rows of the table."""
        return self.distances[..., 0].size

    @property
    def pieces(self) -> tuple[str, ...]:
        """The text of what each case hides."""
        return tuple(self.prompt.pieces[token] for token in self.tokens) if self.names is None else self.names

    def joined(self, parts: Sequence[tuple[list[int], "Impact"]]) -> "Impact":
        """This impact with the cases of all parts, each of which comes with the places of its own."""
        order = np.argsort([case for cases, _ in parts for case in cases])
        found = [part for _, part in parts]
        last = max(parts, key=lambda pair: max(pair[0]))[1]  # it holds the last query that is read
        distances = np.concatenate([part.distances for part in found], axis=1)[:, order]
        return replace(
            last,
            distances=distances,
            tokens=in_order([part.tokens for part in found], order),
            names=in_order([part.pieces for part in found], order),
            labels={name: in_order([part.labels[name] for part in found], order) for name in self.labels},
            cells={n: np.concatenate([part.cells[n] for part in found], axis=1)[:, order] for n in self.cells},
        )

    def table(self) -> pl.DataFrame:
        """The long table: one row per layer, case and variant."""
        return self.tables([self], [0]).drop("prompt_id")

    @staticmethod
    def tables(impacts: Sequence["Impact"], prompt_ids: Sequence[int] | Sequence[str]) -> pl.DataFrame:
        """The tables of several prompts of one task, one after the other, with ``prompt_id`` in front."""
        first = impacts[0]
        return build_tables(
            [impact.distances for impact in impacts],
            prompt_ids=prompt_ids,
            layers=first.layers,
            positions=[impact.tokens for impact in impacts],
            pieces=[impact.pieces for impact in impacts],
            variants=first.variants,
            labels={name: [impact.labels[name] for impact in impacts] for name in first.labels},
            cells={name: [impact.cells[name] for impact in impacts] for name in first.cells},
        )
