"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864), in the half-split pairing of transformers.

Channel i of the first half turns with channel i of the second half. Where the tables are narrower than a head, the
channels behind them stay as they are. Axes: ``r`` row, ``h`` head (queries and keys), ``c`` turning channel =
``(half d)``, ``d`` channel of one half, ``w`` head channel.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class RotaryTables:
    """Cosine and signed sine of every row's position; the sign of the first half is the minus of the rotation."""

    cos: Float[Tensor, "r 1 c"]
    signed_sin: Float[Tensor, "r 1 c"]

    def rotate(self, x: Float[Tensor, "r h w"]) -> Float[Tensor, "r h w"]:
        """Turn every head of every row by the angle of the row's position."""
        width = self.cos.shape[-1]
        if width == x.shape[-1]:
            return self._turned(x)
        turning, rest = x.tensor_split((width,), dim=-1)
        return torch.cat((self._turned(turning), rest), dim=-1)

    def _turned(self, x: Float[Tensor, "r h c"]) -> Float[Tensor, "r h c"]:
        halves_swapped = x.roll(x.shape[-1] // 2, dims=-1)
        return torch.addcmul(x * self.cos, halves_swapped, self.signed_sin)

    def part(self, rows: slice) -> "RotaryTables":
        """The tables of some of the rows."""
        return RotaryTables(self.cos[rows], self.signed_sin[rows])


Rotaries = Mapping[str, RotaryTables]
"""The tables of a batch's rows, by the name of the rope; a layer may use one of several, or none."""


def rotary_tables(cos: Float[Tensor, "r c"], sin: Float[Tensor, "r c"]) -> RotaryTables:
    """Tables from the model's own cosines and sines, one row per row of the batch."""
    first, second = rearrange(sin, "r (half d) -> half r 1 d", half=2)
    return RotaryTables(rearrange(cos, "r c -> r 1 c"), torch.cat((-first, second), dim=-1))
