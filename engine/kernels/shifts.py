"""Attention of runs that part from the baseline: how a pattern and the head outputs move when queries, keys and values
all move a little, and some keys are hidden.

Axes: ``f`` fork (a run of its own), ``b`` prompt, ``n`` query position of the fork, ``m`` the same positions as keys,
``k`` key position, ``h`` query head = ``(kv g)``, ``kv`` key/value head, ``g`` query head in its kv group, ``d`` head
channel. Boolean masks say in their name what True means.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Baseline:
    """What the forks part from: queries at their positions, all keys and values, and what the queries see."""

    q: Float[Tensor, "b h n d"]
    k: Float[Tensor, "b kv k d"]
    v: Float[Tensor, "b kv k d"]
    visible: Bool[Tensor, "n k"]
    scale: float


@dataclass(frozen=True, slots=True)
class Moved:
    """The differences of the forks' queries, keys and values from the baseline's, at the forks' own positions."""

    q: Float[Tensor, "f b n h d"]
    k: Float[Tensor, "f b n kv d"]
    v: Float[Tensor, "f b n kv d"]


@dataclass(frozen=True, slots=True)
class Hidden:
    """What each fork hides: keys from queries, in some heads; ``blind`` queries are left without any key.

    ``intervention``: hidden keys get -inf, or keep their share of the pattern and lose their value to zero or, where
    one is given, to the ``mean`` value of each head.
    """

    keys: Bool[Tensor, "f 1 kv g n k"]
    blind: Bool[Tensor, "f 1 kv g n 1"]
    masks: bool
    mean: Float[Tensor, "b kv d"] | None = None


def shifted_z(base: Baseline, moved: Moved, hidden: Hidden) -> Float[Tensor, "f b n c"]:
    """How the forks' head outputs ``c = (kv g d)`` differ from the baseline's.

    With a and a' the patterns before and after: z' - z = Σ_k (a'_k - a_k)·v_k + Σ_k a'_k·Δv_k. Every term has a
    difference as a factor, so a small effect keeps its digits.
    """
    num_kv, own = base.k.shape[1], slice(base.k.shape[2] - base.q.shape[2], None)
    q = rearrange(base.q, "b (kv g) n d -> b kv g n d", kv=num_kv)
    scores = (q * base.scale) @ rearrange(base.k, "b kv k d -> b kv 1 d k")
    scores = torch.where(base.visible, scores, -torch.inf)
    shift = score_shift(base, moved)
    if hidden.masks:
        shift.masked_fill_(hidden.keys, -torch.inf)
    pattern, change = pattern_difference(scores, shift, blind=hidden.blind if hidden.masks else None)
    own_weights = pattern[..., own]
    lost = None if hidden.masks else pattern * hidden.keys
    if lost is not None:
        change, own_weights = change - lost, own_weights - lost[..., own]
    z = _summed(change, rearrange(base.v, "b kv k d -> 1 b kv k d"))
    z += _summed(own_weights, rearrange(moved.v, "f b m kv d -> f b kv m d"))
    if lost is not None and hidden.mean is not None:
        z += lost.sum(-1, keepdim=True) * rearrange(hidden.mean, "b kv d -> b kv 1 1 d")
    return rearrange(z, "f b kv g n d -> f b n (kv g d)")


def score_shift(base: Baseline, moved: Moved) -> Float[Tensor, "f b kv g n k"]:
    """q'·k' - q·k = Δq·k + q'·Δk, the second term for the keys at the forks' own positions; scaled."""
    num_kv, num_own = base.k.shape[1], base.q.shape[2]
    f = moved.q.shape[0]
    delta = rearrange(moved.q * base.scale, "f b n (kv g) d -> b kv (f g n) d", kv=num_kv)
    flat = delta @ rearrange(base.k, "b kv k d -> b kv d k")
    shift = rearrange(flat, "b kv (f g n) k -> f b kv g n k", f=f, n=num_own)
    there = rearrange(base.q * base.scale, "b (kv g) n d -> b kv (g n) d", kv=num_kv)
    there = there + rearrange(delta, "b kv (f gn) d -> f b kv gn d", f=f)
    own = there @ rearrange(moved.k, "f b m kv d -> f b kv d m")
    shift[..., base.k.shape[2] - num_own :] += rearrange(own, "f b kv (g n) m -> f b kv g n m", n=num_own)
    return shift


def pattern_difference(
    scores: Float[Tensor, "b kv g n k"],
    shift: Float[Tensor, "f b kv g n k"],
    *,
    blind: Bool[Tensor, "f 1 kv g n 1"] | None = None,
) -> tuple[Float[Tensor, "f b kv g n k"], Float[Tensor, "f b kv g n k"]]:
    """The pattern a' after the scores moved by ``shift`` (-inf where a key is hidden), and a' - a.

    With λ the growth of log Σ exp: a'_k - a_k = a_k·expm1(shift_k - λ) = -a'_k·expm1(λ - shift_k); the form whose
    exponent is negative cannot overflow. λ = log1p(Σ_k a_k·expm1(shift_k)) as long as that sum is small, so that the
    hiding of a key that holds 1e-9 of a head is as accurate as any other. ``blind`` queries attend to nothing.
    """
    before = torch.softmax(scores, dim=-1)
    moved = scores + shift
    after = torch.softmax(moved, dim=-1)
    grown = (before * shift.clamp(max=80.0).expm1_()).sum(-1, keepdim=True)
    apart = moved.logsumexp(-1, keepdim=True) - scores.logsumexp(-1, keepdim=True)
    gap = shift - torch.where(grown.abs() < 0.5, grown.log1p(), apart)
    change = torch.where(gap <= 0, before * gap.expm1(), -after * (-gap).expm1())
    if blind is not None:
        after, change = after.masked_fill_(blind, 0.0), torch.where(blind, -before, change)
    return after, change


def _summed(weights: Float[Tensor, "f b kv g n k"], values: Float[Tensor, "_ b kv k d"]) -> Float[Tensor, "..."]:
    """Values summed with the weights of every query; groups and positions are rows of one product."""
    rows = rearrange(weights, "f b kv g n k -> f b kv (g n) k") @ values
    return rearrange(rows, "f b kv (g n) d -> f b kv g n d", n=weights.shape[4])
