"""What a knockout leaves of head outputs, as sums of their own.

Where next to nothing is left, baseline and difference are next to each other's negative, and their sum has no digits of
it. Axes as in ``attention``.
"""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from engine.kernels.attention import attended
from engine.kernels.scores import softmax


def masked_z(
    scores: Float[Tensor, "b kv g k"],
    values: Float[Tensor, "b kv k d"],
    *,
    hidden: Bool[Tensor, "b 1 v 1 k"],
    sink: Float[Tensor, "kv g 1"],
) -> Float[Tensor, "b v c"]:
    """z' of every variant with ``hidden`` keys at -inf; only beside a ``sink`` can the others hold next to nothing."""
    masked = torch.where(hidden, -torch.inf, rearrange(scores, "b kv g k -> b kv 1 g k"))
    return _summed(softmax(masked, rearrange(sink, "kv g 1 -> kv 1 g 1")), values)


def replaced_z(
    pattern: Float[Tensor, "b kv g k"],
    values: Float[Tensor, "b kv k d"],
    *,
    hidden: Bool[Tensor, "b 1 v 1 k"],
    means: Float[Tensor, "b kv 1 d"] | None = None,
) -> Float[Tensor, "b v c"]:
    """z' of every variant whose ``hidden`` keys keep their weight, and whose values become 0 or the ``means``."""
    by_variant = rearrange(pattern, "b kv g k -> b kv 1 g k")
    kept = _summed(by_variant * ~hidden, values)
    if means is None:
        return kept
    lost = (by_variant * hidden).sum(-1, keepdim=True)
    return kept + rearrange(lost * rearrange(means, "b kv 1 d -> b kv 1 1 d"), "b kv v g d -> b v (kv g d)")


def _summed(weights: Float[Tensor, "b kv v g k"], values: Float[Tensor, "b kv k d"]) -> Float[Tensor, "b v c"]:
    z = attended(rearrange(weights, "b kv v g k -> b kv (v g) k"), values)
    return rearrange(z, "b kv (v g) d -> b v (kv g d)", v=weights.shape[2])
