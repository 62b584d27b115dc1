"""Both ends of a decoder: from token ids to the residual stream, and from its last state to logits.

Axes: ``n`` row, ``e`` residual channel, ``c`` token of the vocabulary, ``s`` position.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int
from torch import Tensor

from engine.kernels.caps import bent
from engine.kernels.projection import Projection
from engine.model.stored import StoredProjection, StoredTable


@dataclass(frozen=True, slots=True)
class Embedding:
    """A row of ``table`` for every token, times ``scale``; with learned ``positions`` a row of those is added."""

    table: Float[Tensor, "c e"]
    scale: float = 1.0
    positions: Float[Tensor, "s e"] | None = None

    @property
    def vocab_size(self) -> int:
        return self.table.shape[0]

    @property
    def hidden_size(self) -> int:
        return self.table.shape[1]

    def __call__(
        self, token_ids: Int[Tensor, " n"], positions: Int[Tensor, " n"], dtype: torch.dtype
    ) -> Float[Tensor, "n e"]:
        """The stream's first state, in ``dtype``."""
        rows = F.embedding(token_ids, self.table).to(dtype)
        if self.scale != 1.0:
            rows = rows * self.scale
        return rows if self.positions is None else rows + F.embedding(positions, self.positions).to(dtype)


@dataclass(frozen=True)
class StoredEmbedding:
    """As ``Embedding``; learned ``positions`` are small, and stay in memory."""

    table: StoredTable
    scale: float = 1.0
    positions: Float[Tensor, "s e"] | None = None

    @property
    def vocab_size(self) -> int:
        return self.table.stored.shape[0]

    @property
    def hidden_size(self) -> int:
        return self.table.stored.shape[1]

    def __call__(
        self, token_ids: Int[Tensor, " n"], positions: Int[Tensor, " n"], dtype: torch.dtype
    ) -> Float[Tensor, "n e"]:
        """The stream's first state, in ``dtype``. Waits for the token ids, where they are on another device."""
        ids, places = token_ids.cpu().unique(return_inverse=True)
        needed = Embedding(self.table.rows(ids), self.scale, self.positions)
        return needed(places.to(token_ids.device, non_blocking=True), positions, dtype)


@dataclass(frozen=True, slots=True)
class Unembedding:
    """Logits of the final state: a product, times ``scale``, under a ``soft_cap``."""

    projection: Projection | StoredProjection
    scale: float = 1.0
    soft_cap: float | None = None

    @property
    def device(self) -> torch.device:
        """Where the logits are made."""
        return self.projection.device

    def __call__(self, hidden: Float[Tensor, "n e"]) -> Float[Tensor, "n c"]:
        return bent(self.scaled(self.projection(hidden)), self.soft_cap)

    def scaled(self, products: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """Products as logits before the cap; a difference of products becomes one of logits."""
        return products if self.scale == 1.0 else products.mul_(self.scale)
