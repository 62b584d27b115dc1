"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864), in the half-split pairing of transformers.

Channel i of the first half turns with channel i of the second half. Axes: ``r`` row, ``h`` head (queries and keys),
``half`` = 2, ``d`` channel of one half.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class RotaryTables:
    """Cosine and signed sine of every row's position; the sign of the first half is the minus of the rotation."""

    cos: Float[Tensor, "r 1 half d"]
    signed_sin: Float[Tensor, "r 1 half d"]

    def rotate(self, x: Float[Tensor, "r h c"]) -> Float[Tensor, "r h c"]:
        """Turn every head of every row by the angle of the row's position."""
        halves = rearrange(x, "r h (half d) -> r h half d", half=2)
        turned = torch.addcmul(halves * self.cos, halves.flip(-2), self.signed_sin)
        return rearrange(turned, "r h half d -> r h (half d)")

    def part(self, rows: slice) -> "RotaryTables":
        """The tables of some of the rows."""
        return RotaryTables(self.cos[rows], self.signed_sin[rows])


def rotary_tables(cos: Float[Tensor, "r c"], sin: Float[Tensor, "r c"]) -> RotaryTables:
    """Tables from the model's own cosines and sines, one row per row of the batch."""
    cos, sin = (rearrange(x, "r (half d) -> r 1 half d", half=2) for x in (cos, sin))
    first, second = sin.unbind(2)
    return RotaryTables(cos, torch.stack((-first, second), dim=2))
