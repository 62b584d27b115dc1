"""From products of queries and keys to a pattern: scale, soft cap and sinks, the parts in which families differ.

Axes: ``h`` query head = ``(kv g)``, ``kv`` key/value head, ``g`` query head in its kv group, ``k`` key position.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Scoring:
    """How one layer makes scores of products, and a pattern of scores.

    A ``soft_cap`` bends scores before any mask. A head's sink is one more score in its softmax, of a key that every
    query sees and that has no value (gpt-oss, arXiv 2508.10925).
    """

    scale: float
    soft_cap: float | None = None
    sinks: Float[Tensor, " h"] | None = None

    @property
    def is_plain(self) -> bool:
        """Whether the pattern is no more than a softmax of scaled products."""
        return self.soft_cap is None and self.sinks is None

    def sink(self, num_kv: int, pattern: str) -> Float[Tensor, "..."] | None:
        """The sinks laid out by an einops ``pattern`` of ``kv``, ``g`` and ones; None where there are none."""
        return None if self.sinks is None else rearrange(self.sinks, f"(kv g) -> {pattern}", kv=num_kv)


def softmax(
    scores: Float[Tensor, "..."], sink: Float[Tensor, "..."] | None = None, *, dim: int = -1
) -> Float[Tensor, "..."]:
    """The pattern over ``dim``; a ``sink`` takes a share that no key gets, and all of it where every key is hidden."""
    if sink is None:
        return torch.softmax(scores, dim=dim)
    largest = torch.maximum(scores.amax(dim, keepdim=True), sink)
    grown = torch.exp(scores - largest)
    return grown / (grown.sum(dim, keepdim=True) + torch.exp(sink - largest))


def sink_share(scores: Float[Tensor, "... k"], sink: Float[Tensor, "... 1"]) -> Float[Tensor, "... 1"]:
    """The share of every pattern that its sink takes."""
    return torch.sigmoid(sink - torch.logsumexp(scores, dim=-1, keepdim=True))
