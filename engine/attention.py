"""Causal grouped-query attention of the baseline, and of the query under every knockout.

Axes: ``b`` prompt, ``v`` variant, ``s`` position, ``k`` key position, ``kv`` key/value head, ``g`` query head in its
kv group, ``d`` head channel. Heads flatten only as ``(kv g)``. Boolean masks say in their name what True means.
"""

import torch
import torch.nn.functional as F  # noqa: N812
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor


def causal_z(
    q: Float[Tensor, "b s kv g d"],
    k: Float[Tensor, "b s kv d"],
    v: Float[Tensor, "b s kv d"],
    *,
    scale: float,
    window: int | None,
) -> Float[Tensor, "b s kv g d"]:
    """Head outputs of all positions, unmasked; a window of w lets a query see itself and w - 1 keys before it."""
    num_positions = q.shape[1]
    sliding = window is not None and window < num_positions
    z = F.scaled_dot_product_attention(
        rearrange(q, "b s kv g d -> b (kv g) s d"),
        rearrange(k, "b s kv d -> b kv s d"),
        rearrange(v, "b s kv d -> b kv s d"),
        attn_mask=_visible_pairs(num_positions, window, q.device) if sliding else None,
        is_causal=not sliding,
        scale=scale,
        enable_gqa=q.shape[3] > 1,
    )
    return rearrange(z, "b (kv g) s d -> b s kv g d", kv=q.shape[2])


def _visible_pairs(num_positions: int, window: int | None, device: torch.device) -> Bool[Tensor, "s k"]:
    positions = torch.arange(num_positions, device=device)
    return visible_keys(positions, num_positions, window)


def visible_keys(query: Int[Tensor, " b"], num_keys: int, window: int | None) -> Bool[Tensor, "b k"]:
    """The keys that each query position may attend to: not after it and, with a window, fewer than w before it."""
    distance = rearrange(query, "b -> b 1") - torch.arange(num_keys, device=query.device)
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)


def query_scores(
    q: Float[Tensor, "b kv g d"], k: Float[Tensor, "b k kv d"], *, scale: float
) -> Float[Tensor, "b kv g k"]:
    """Attention logits of one query per prompt, before any mask."""
    return rearrange(q, "b kv g d -> b kv g d") @ rearrange(k, "b k kv d -> b kv d k") * scale


def masked_pattern(scores: Float[Tensor, "... k"], visible: Bool[Tensor, "... k"]) -> Float[Tensor, "... k"]:
    """Softmax over the visible keys: every other score is set to -inf and the rest renormalises.

    A query without any visible key attends to nothing: its pattern is 0.
    """
    pattern = torch.softmax(scores.masked_fill(~visible, -torch.inf), dim=-1)
    return pattern.masked_fill(~visible, 0.0)


def z_difference(
    scores: Float[Tensor, "b kv g k"],
    values: Float[Tensor, "b k kv d"],
    *,
    visible: Bool[Tensor, "b k"],
    hidden: Bool[Tensor, "b v k"],
) -> Float[Tensor, "b v kv g d"]:
    """How every variant's head outputs differ from the baseline's when its ``hidden`` keys get -inf.

    With the baseline pattern a, the variant's own masked pattern a' and the hidden mass A = Σ_hidden a, exactly

        z' - z = Σ_k (A·a'_k - hidden_k·a_k) v_k

    A factors out of every term, so the difference of a token that holds 1e-9 of a head is as accurate as any other.
    """
    scores = rearrange(scores, "b kv g k -> b kv 1 g k")
    hidden = rearrange(hidden, "b v k -> b 1 v 1 k")
    visible = rearrange(visible, "b k -> b 1 1 1 k")
    lost = masked_pattern(scores, visible) * hidden
    kept = masked_pattern(scores, visible & ~hidden)
    weights = torch.addcmul(-lost, kept, lost.sum(-1, keepdim=True))
    delta = rearrange(weights, "b kv v g k -> b kv (v g) k") @ rearrange(values, "b k kv d -> b kv k d")
    return rearrange(delta, "b kv (v g) d -> b v kv g d", v=hidden.shape[2])
