"""Vocabulary matrices that stay in their files: a few rows of one, or all of them, block by block.

Axes: ``n`` row, ``e`` residual channel, ``c`` token of the vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from engine.kernels.projection import Projection
from engine.model.blocks import Shelf, blocks_on
from engine.model.streaming import Streamed
from engine.model.tensors import StoredTensor

BLOCK_CELLS = 1 << 22
"""Cells of a matrix that are read together: a processor multiplies so many as fast as more."""


def block_rows(width: int) -> int:
    """Rows of a matrix of that width that are read together."""
    return max(1, BLOCK_CELLS // width)


def in_blocks(projection: Projection) -> Projection:
    """The projection as ``StoredProjection`` multiplies it: how a processor's library adds up may depend on the height
    of a matrix, and weights in memory shall give the same digits as weights in files.
    """
    (weight,) = projection.weights
    if weight.device.type == "cpu" and len(weight) > block_rows(weight.shape[1]):
        projection.weights = weight.split(block_rows(weight.shape[1]))
    return projection


@dataclass(frozen=True)
class StoredTable:
    """A matrix with a row for every token, in its file; what is taken of it comes in ``dtype`` on ``device``."""

    stored: StoredTensor
    dtype: torch.dtype
    device: torch.device

    def rows(self, ids: Int[Tensor, " n"]) -> Float[Tensor, "n e"]:
        """Some rows; nothing else is read."""
        return self.stored.rows(ids.tolist()).to(device=self.device, dtype=self.dtype)

    @cached_property
    def blocks(self) -> Streamed[Tensor]:
        """All rows, in order, some at a time."""
        height, step = self.stored.shape[0], block_rows(self.stored.shape[1])
        parts = [self.stored.part(start, min(start + step, height)) for start in range(0, height, step)]
        shelves = [Shelf({"rows": part}, {"rows": self.dtype}) for part in parts]
        return Streamed(shelves, lambda _, found: found["rows"], blocks_on(self.device, shelves[0].num_bytes))


@dataclass(frozen=True)
class StoredProjection:
    """As ``Projection``, of one weight matrix, every block of which is multiplied with all rows as soon as it is read.

    Another device than the processor gets all of them first, and multiplies them in one product, as it would have if
    they had been there; see ``in_blocks``.
    """

    table: StoredTable
    bias: Float[Tensor, " c"] | None = None
    split: bool = False

    @property
    def dtype(self) -> torch.dtype:
        return self.table.dtype

    @property
    def device(self) -> torch.device:
        return self.table.device

    @property
    def num_cells(self) -> int:
        height, width = self.table.stored.shape
        return height * width

    def __call__(self, rows: Float[Tensor, "n e"]) -> Float[Tensor, "n c"]:
        product = self.product(rows)
        return product if self.bias is None else product.add_(self.bias)

    def product(self, rows: Float[Tensor, "n e"]) -> Float[Tensor, "n c"]:
        """The rows times the weight, without bias."""
        if rows.device.type != "cpu":
            return Projection((self._whole(),), split=self.split).product(rows)
        parts = (Projection((block,)).product(rows) for block in self.table.blocks)
        return self._side_by_side(parts, rows)

    def wide_product(self, rows: Float[Tensor, "n e"]) -> Float[Tensor, "n c"]:
        """The same in float64."""
        parts = (Projection((block,)).wide_product(rows) for block in self.table.blocks)
        return self._side_by_side(parts, rows.double())

    def _side_by_side(self, parts: Iterator[Float[Tensor, "n _"]], rows: Float[Tensor, "n e"]) -> Float[Tensor, "n c"]:
        out, start = rows.new_empty(len(rows), self.table.stored.shape[0]), 0
        for part in parts:
            out[:, start : start + part.shape[1]] = part
            start += part.shape[1]
        return out

    def _whole(self) -> Float[Tensor, "c e"]:
        whole, start = torch.empty(self.table.stored.shape, dtype=self.dtype, device=self.table.device), 0
        for block in self.table.blocks:
            whole[start : start + len(block)] = block
            start += len(block)
        return whole
