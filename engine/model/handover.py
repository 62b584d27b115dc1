"""What a layer hands to its attention function, and the function that takes it.

Axes as in ``attention``; ``i`` the query positions asked for, ``c`` value channel.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from engine.errors import ModelError
from engine.kernels.caps import bent
from engine.kernels.scores import Scoring, softmax

UNDERSTOOD = frozenset({"scaling", "dropout", "softcap", "s_aux", "position_bias", "sliding_window", "position_ids"})
"""What a layer may hand over beside queries, keys, values and mask. Tensors under any other name are refused."""


@dataclass(frozen=True)
class Handover:
    """Queries and keys with their positions applied, values, and all that shapes the pattern; one prompt."""

    q: Float[Tensor, "h s d"]
    k: Float[Tensor, "kv s d"]
    v: Float[Tensor, "kv s c"]
    mask: Float[Tensor, "m s k"] | None
    """Added to the scores; ``m`` is 1, or the number of heads. The lowest number of its dtype hides a key."""
    scoring: Scoring
    bias: Float[Tensor, "n s k"] | None = None
    window: int | None = None

    def scores(self, positions: Int[Tensor, " i"]) -> Float[Tensor, "i kv g k"]:
        """The scores of the queries at ``positions``: scaled, capped, biased; -inf where a key is hidden."""
        num_kv = len(self.k)
        q = rearrange(self.q.index_select(1, positions), "(kv g) i d -> kv (g i) d", kv=num_kv)
        products = rearrange(q * self.scoring.scale @ self.k.mT, "kv (g i) k -> i kv g k", i=len(positions))
        scores = bent(products, self.scoring.soft_cap)
        if self.bias is not None:
            scores = scores + self._by_head(self.bias, positions)
        if self.mask is None:
            return scores
        mask = self._by_head(self.mask, positions)
        return torch.where(_is_open(mask), scores + mask, -torch.inf)

    def pattern(self, scores: Float[Tensor, "i kv g k"]) -> Float[Tensor, "i kv g k"]:
        """The softmax of scores, beside the sinks."""
        return softmax(scores, self.sink)

    @property
    def sink(self) -> Float[Tensor, "kv g 1"] | None:
        """One more score for each head, whose share of the pattern falls on no value."""
        return self.scoring.sink(len(self.k), "kv g 1")

    def z(self) -> Float[Tensor, "s h c"]:
        """The head outputs of every position."""
        pattern = self.pattern(self.scores(torch.arange(self.q.shape[1], device=self.q.device)))
        z = rearrange(pattern, "s kv g k -> kv (s g) k") @ self.v
        return rearrange(z, "kv (s g) c -> s (kv g) c", s=self.q.shape[1])

    def visible(self, positions: Int[Tensor, " i"]) -> Bool[Tensor, "i m k"]:
        """True where some query may attend: with one row of keys for all heads (m = 1), or one for each."""
        if self.mask is None:
            return torch.ones(len(positions), 1, self.k.shape[1], dtype=torch.bool, device=self.q.device)
        return rearrange(_is_open(self.mask.index_select(1, positions)), "m i k -> i m k")

    def _by_head(self, grid: Float[Tensor, "m s k"], positions: Int[Tensor, " i"]) -> Float[Tensor, "i _kv _g k"]:
        """Rows of a grid, to be added to scores."""
        rows = grid.index_select(1, positions)
        return rearrange(rows, "(kv g) i k -> i kv g k", kv=1 if len(rows) == 1 else len(self.k))


def _is_open(mask: Float[Tensor, "..."]) -> Bool[Tensor, "..."]:
    return mask > torch.finfo(mask.dtype).min / 2


@dataclass
class Attending:
    """An attention function for transformers: computes as eager attention does, and remembers what it was handed.

    ``given``, the head outputs of every position, are its answer instead, if there are any.
    """

    given: Float[Tensor, "s h c"] | None = None
    seen: list[tuple[nn.Module, Handover]] = field(default_factory=list)
    """The module that asked and what it handed over, call by call."""

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **more: Any
    ) -> tuple[Tensor, None]:
        """Head outputs ``1 s h c``, in the dtype of the queries. Raises ``ModelError`` for what it cannot follow."""
        if self.given is not None:
            return self.given.to(query.dtype).contiguous()[None], None
        handed = handover(module, query, key, value, attention_mask, more)
        self.seen.append((module, handed))
        return handed.z().to(query.dtype).contiguous()[None], None


def handover(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, more: dict[str, Any]) -> Handover:
    """What was handed over, in float32 where it is narrower. Raises ``ModelError`` where it cannot be followed."""
    owner = type(module).__name__
    unknown = [name for name, given in more.items() if isinstance(given, Tensor) and name not in UNDERSTOOD]
    if unknown:
        raise ModelError(f"{owner} hands its attention {unknown[0]!r}, which this program does not understand")
    plain = query.ndim == key.ndim == value.ndim == 4 and len(query) == 1 and query.shape[1] % key.shape[1] == 0
    if not plain or not query.shape[2] == key.shape[2] == value.shape[2]:
        shapes = ", ".join(str(tuple(each.shape)) for each in (query, key, value))
        raise ModelError(f"{owner} hands its attention queries, keys and values {shapes}, not one of each per token")
    if mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 4 and mask.is_floating_point()):
        raise ModelError(f"{owner} hands its attention a mask that is no grid of numbers")
    scaling = more.get("scaling")
    return Handover(
        q=_wide(query[0]),
        k=_wide(key[0]),
        v=_wide(value[0]),
        mask=None if mask is None else mask[0],
        scoring=Scoring(
            scale=float(query.shape[-1] ** -0.5 if scaling is None else scaling),
            soft_cap=more.get("softcap"),
            sinks=None if more.get("s_aux") is None else _wide(more["s_aux"].detach().reshape(-1)),
        ),
        bias=None if more.get("position_bias") is None else _wide(more["position_bias"][0]),
        window=more.get("sliding_window", getattr(module, "sliding_window", None)),
    )


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
