"""What was measured of one prompt: the numbers with the labels of their axes."""

from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float

from engine.tables.table import build_table
from engine.text.prompts import Prompt


@dataclass(frozen=True)
class Impact:
    """The measured impact of one prompt's tokens; ``distances`` are (L2, cosine), NaN where undefined."""

    prompt: Prompt
    layers: tuple[int, ...]
    tokens: tuple[int, ...]
    variants: tuple[str, ...]
    distances: Float[np.ndarray, "l v site 2"]
    next_tokens: tuple[tuple[str, float], ...] = ()
    """The baseline's most probable next tokens with their probabilities, when they were asked for."""

    def table(self) -> pl.DataFrame:
        """The long table: one row per layer, masked token and variant."""
        return build_table(
            self.distances,
            layers=self.layers,
            positions=self.tokens,
            pieces=[self.prompt.pieces[position] for position in self.tokens],
            variants=self.variants,
        )
