"""Attention of runs that part from the baseline: how a pattern and the head outputs move when queries, keys and values
all move a little, and some keys are hidden.

Axes: ``f`` fork (a run of its own), ``b`` prompt, ``n`` query position of the fork, ``m`` the same positions as keys,
``k`` key position, ``h`` query head = ``(kv g)``, ``kv`` key/value head, ``g`` query head in its kv group, ``d`` head
channel. Boolean masks say in their name what True means.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from engine.kernels.caps import bent, bent_shift
from engine.kernels.scores import Scoring, sink_share, softmax

CLOSE = 0.5
"""Growth of the sum of exponentials below which a pattern is close to the one before."""
MOST_GROWTH = 60.0
"""Growth of a score beyond which a pattern is far from the one before, even if the key held next to nothing of it; exp
of a little more is beyond float32.
"""


@dataclass(frozen=True, slots=True)
class Baseline:
    """What the forks part from: queries at their positions, all keys and values, and what the queries see."""

    q: Float[Tensor, "b h n d"]
    k: Float[Tensor, "b kv k d"]
    v: Float[Tensor, "b kv k d"]
    visible: Bool[Tensor, "n k"]
    scoring: Scoring


@dataclass(frozen=True, slots=True)
class Moved:
    """The differences of the forks' queries, keys and values from the baseline's, at the forks' own positions."""

    q: Float[Tensor, "f b n h d"]
    k: Float[Tensor, "f b n kv d"]
    v: Float[Tensor, "f b n kv d"]


@dataclass(frozen=True, slots=True)
class Hidden:
    """What each fork hides: keys from queries, in some heads; ``blind`` queries are left without any key.

    If it ``masks``, hidden keys get -inf; otherwise they keep their share of the pattern and lose their value to zero
    or, where one is given, to the ``mean`` value of each head.
    """

    keys: Bool[Tensor, "1 kv f g n k"]
    blind: Bool[Tensor, "1 kv f g n 1"]
    masks: bool
    mean: Float[Tensor, "b kv d"] | None = None


@dataclass(frozen=True, slots=True)
class Shifted:
    """Patterns of the forks: the weights that values keep, how those differ from the baseline's, and what is ``lost``
    with hidden values where no key gets -inf.
    """

    weights: Float[Tensor, "b kv f g n k"]
    change: Float[Tensor, "b kv f g n k"]
    lost: Float[Tensor, "b kv f g n k"] | None

    def at(self, queries: Int[Tensor, " n2"]) -> "Shifted":
        """The patterns of some of the queries."""
        lost = None if self.lost is None else self.lost.index_select(-2, queries)
        return Shifted(self.weights.index_select(-2, queries), self.change.index_select(-2, queries), lost)


def shifted_pattern(base: Baseline, moved: Moved, hidden: Hidden) -> Shifted:
    """The patterns when queries and keys move and keys are hidden."""
    num_kv = base.k.shape[1]
    q = rearrange(base.q * base.scoring.scale, "b (kv g) n d -> b kv 1 g n d", kv=num_kv)
    products = q @ rearrange(base.k, "b kv k d -> b kv 1 1 d k")
    scores = torch.where(base.visible, bent(products, base.scoring.soft_cap), -torch.inf)
    shift = bent_shift(products, score_shift(base, q, moved), base.scoring.soft_cap)
    if hidden.masks:
        shift.masked_fill_(hidden.keys, -torch.inf)
    sink, blind = base.scoring.sink(num_kv, "kv 1 g 1 1"), hidden.blind if hidden.masks else None
    pattern, change = pattern_difference(scores, shift, blind=blind, sink=sink)
    if hidden.masks:
        return Shifted(pattern, change, None)
    lost = pattern * hidden.keys
    return Shifted(pattern - lost, change - lost, lost)


def shifted_z(
    base: Baseline,
    moved: Moved,
    patterns: Shifted,
    *,
    mean: Float[Tensor, "b kv d"] | None = None,
    whole: bool = False,
) -> Float[Tensor, "f b n c"]:
    """How the forks' head outputs ``c = (kv g d)`` differ from the baseline's or, if ``whole``, what they are.

    With a and a' the patterns before and after: z' - z = Σ_k (a'_k - a_k)·v_k + Σ_k a'_k·Δv_k. Every term has a
    difference as a factor, so a small effect keeps its digits; z' has a'_k·v_k in the first sum.
    """
    first, group, own = patterns.weights if whole else patterns.change, patterns.weights.shape[3], moved.v.shape[2]
    rows = rearrange(first, "b kv f g n k -> b kv (f g n) k") @ base.v
    z = rearrange(rows, "b kv (f g n) d -> b kv f g n d", g=group, n=first.shape[4])
    z += _over_own_keys(patterns.weights[..., -own:], rearrange(moved.v, "f b m kv d -> b kv f m d"))
    if patterns.lost is not None and mean is not None:
        z += patterns.lost.sum(-1, keepdim=True) * rearrange(mean, "b kv d -> b kv 1 1 1 d")
    return rearrange(z, "b kv f g n d -> f b n (kv g d)")


def score_shift(base: Baseline, q: Float[Tensor, "b kv 1 g n d"], moved: Moved) -> Float[Tensor, "b kv f g n k"]:
    """q'·k' - q·k = Δq·k + q'·Δk, the second term for the keys at the forks' own positions; ``q`` is scaled."""
    num_kv, group, num_own = q.shape[1], q.shape[3], q.shape[4]
    delta = rearrange(moved.q * base.scoring.scale, "f b n (kv g) d -> b kv (f g n) d", kv=num_kv)
    flat = delta @ rearrange(base.k, "b kv k d -> b kv d k")
    shift = rearrange(flat, "b kv (f g n) k -> b kv f g n k", g=group, n=num_own)
    there = q + rearrange(delta, "b kv (f g n) d -> b kv f g n d", g=group, n=num_own)
    shift[..., base.k.shape[2] - num_own :] += _with_own_keys(there, rearrange(moved.k, "f b m kv d -> b kv f m d"))
    return shift


def pattern_difference(
    scores: Float[Tensor, "b kv 1 g n k"],
    shift: Float[Tensor, "b kv f g n k"],
    *,
    blind: Bool[Tensor, "1 kv f g n 1"] | None = None,
    sink: Float[Tensor, "kv 1 g 1 1"] | None = None,
) -> tuple[Float[Tensor, "b kv f g n k"], Float[Tensor, "b kv f g n k"]]:
    """The pattern a' after the scores moved by ``shift`` (-inf where a key is hidden), and a' - a.

    With x_k = expm1(shift_k) and t = Σ_k a_k·x_k: a'_k - a_k = a_k·(x_k - t) / (1 + t). As long as t is small, that
    makes the hiding of a key that holds 1e-9 of a head as accurate as any other; where it is not, the patterns
    themselves are far apart. Only shifts against each other count, so the shift of the key that holds the most is taken
    off all of them, and off the ``sink``, whose own is 0: that key's x is then 0, where x - t would cancel. ``blind``
    queries attend to nothing.
    """
    before, after = softmax(scores, sink), softmax(scores + shift, sink)
    share = None if sink is None else sink_share(scores, sink)
    anchor = _shift_of_most(before, shift, share)
    growth = shift - anchor
    highest = torch.where(scores > -torch.inf, growth, -torch.inf).amax(-1, keepdim=True)
    growth.clamp_(max=MOST_GROWTH).expm1_()
    grown = torch.linalg.vecdot(before, growth)[..., None]
    if share is not None:
        highest = torch.maximum(highest, -anchor)
        grown = torch.addcmul(grown, share, (-anchor).clamp_(max=MOST_GROWTH).expm1_())
    close = growth.sub_(grown).mul_(before / (1 + grown))
    is_close = (grown.abs() < CLOSE) & (highest < MOST_GROWTH)
    change = torch.where(is_close, close, after - before)
    if blind is not None:
        after, change = after.masked_fill_(blind, 0.0), torch.where(blind, -before, change)
    return after, change


def _shift_of_most(
    pattern: Float[Tensor, "b kv 1 g n k"],
    shift: Float[Tensor, "b kv f g n k"],
    sink_share: Float[Tensor, "b kv 1 g n 1"] | None,
) -> Float[Tensor, "b kv f g n 1"]:
    """The shift of what holds the most of each pattern; 0 where that is the sink, or hidden."""
    most, place = pattern.max(-1, keepdim=True)
    found = shift.gather(-1, place.expand(*shift.shape[:-1], 1))
    counts = found > -torch.inf if sink_share is None else (found > -torch.inf) & (most >= sink_share)
    return torch.where(counts, found, 0.0)


def _with_own_keys(
    q: Float[Tensor, "b kv f g n d"], keys: Float[Tensor, "b kv f m d"]
) -> Float[Tensor, "b kv f g n m"]:
    """Queries times the keys of their own fork; with one position each a product of vectors."""
    if q.shape[4] == 1:
        return torch.linalg.vecdot(q, rearrange(keys, "b kv f 1 d -> b kv f 1 1 d"))[..., None]
    rows = rearrange(q, "b kv f g n d -> b kv f (g n) d") @ rearrange(keys, "b kv f m d -> b kv f d m")
    return rearrange(rows, "b kv f (g n) m -> b kv f g n m", n=q.shape[4])


def _over_own_keys(
    weights: Float[Tensor, "b kv f g n m"], values: Float[Tensor, "b kv f m d"]
) -> Float[Tensor, "b kv f g n d"]:
    """Values of the queries' own fork, summed with the weights of every query."""
    if weights.shape[5] == 1:
        return weights * rearrange(values, "b kv f 1 d -> b kv f 1 1 d")
    rows = rearrange(weights, "b kv f g n m -> b kv f (g n) m") @ values
    return rearrange(rows, "b kv f (g n) d -> b kv f g n d", n=weights.shape[4])
