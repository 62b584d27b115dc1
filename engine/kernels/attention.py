"""Grouped-query attention of the query under every knockout.

Axes: ``b`` prompt, ``v`` variant, ``s`` position, ``k`` key position, ``h`` query head = ``(kv g)``, ``kv`` key/value
head, ``g`` query head in its kv group, ``d`` head channel. Boolean masks say in their name what True means.
"""

import math

import torch
import torch.nn.functional as F  # noqa: N812
from einops import rearrange, reduce, repeat
from jaxtyping import Bool, Float
from torch import Tensor

from engine.kernels.caps import bent
from engine.kernels.masks import MaskedCopies
from engine.kernels.scores import Scoring, sink_share, softmax


def query_scores(
    q: Float[Tensor, "b h d"], k: Float[Tensor, "b kv k d"], *, scoring: Scoring, visible: Bool[Tensor, "b 1 1 k"]
) -> Float[Tensor, "b kv g k"]:
    """Attention logits of one query per prompt; -inf where the query sees nothing."""
    q = rearrange(q * scoring.scale, "b (kv g) d -> b kv g d", kv=k.shape[1])
    return torch.where(visible, bent(q @ rearrange(k, "b kv k d -> b kv d k"), scoring.soft_cap), -torch.inf)


def attended(pattern: Float[Tensor, "... q k"], v: Float[Tensor, "... k d"]) -> Float[Tensor, "... q d"]:
    """Head outputs: values summed with the pattern's weights. ``q`` is any list of patterns over the same keys."""
    return pattern @ v


def z_difference(
    scores: Float[Tensor, "b kv g k"],
    pattern: Float[Tensor, "b kv g k"],
    values: Float[Tensor, "b kv k d"],
    *,
    hidden: Bool[Tensor, "b 1 v 1 k"],
    blind: Bool[Tensor, "b 1 v 1 1"] | None = None,
    sink: Float[Tensor, "kv g 1"] | None = None,
) -> Float[Tensor, "b v c"]:
    """How every variant's head outputs ``c = (kv g d)`` differ from the baseline's when its ``hidden`` keys get -inf.

    With the baseline ``pattern`` a, the variant's own masked pattern a' and the hidden mass A = Σ_hidden a, exactly

        z' - z = Σ_k (A·a'_k - hidden_k·a_k) v_k

    A factors out of every term, so the difference of a token that holds 1e-9 of a head is as accurate as any other.
    ``blind`` marks variants whose query is left without any key: they attend to nothing, z' = 0. All of it holds beside
    a ``sink`` as well, a further key that is never hidden and whose value is 0.
    """
    scores, pattern = (rearrange(x, "b kv g k -> b kv 1 g k") for x in (scores, pattern))
    lost = pattern * hidden
    by_variant = None if sink is None else rearrange(sink, "kv g 1 -> kv 1 g 1")
    weights = softmax(torch.where(hidden, -torch.inf, scores), by_variant)
    if blind is not None:
        weights.masked_fill_(blind, 0.0)
    weights.mul_(lost.sum(-1, keepdim=True)).sub_(lost)
    delta = attended(rearrange(weights, "b kv v g k -> b kv (v g) k"), values)
    return rearrange(delta, "b kv (v g) d -> b v (kv g d)", v=hidden.shape[2])


def value_difference(
    pattern: Float[Tensor, "b kv g k"],
    values: Float[Tensor, "b kv k d"],
    *,
    hidden: Bool[Tensor, "b 1 v 1 k"],
    z: Float[Tensor, "b c"],
    means: Float[Tensor, "b kv 1 d"] | None = None,
) -> Float[Tensor, "b v c"]:
    """How the head outputs differ when hidden keys keep their weight, and their values become 0 or the ``means``.

    z' - z = Σ_hidden a_k (mean - v_k): value zeroing (Mohebbi et al. 2023, arXiv 2301.12971) without a mean. Where a
    head has all its weight on keys whose value is 0 now, that is ``z`` itself to the last digit, and what is left is 0.
    """
    lost = rearrange(pattern, "b kv g k -> b kv 1 g k") * hidden
    change = -values if means is None else means - values
    delta = attended(rearrange(lost, "b kv v g k -> b kv (v g) k"), change)
    delta = rearrange(delta, "b kv (v g) d -> b v kv g d", v=hidden.shape[2])
    if means is None:
        is_kept = reduce(
            (rearrange(pattern, "b kv g k -> b kv 1 g k") > 0) & ~hidden, "b kv v g k -> b v kv g 1", "any"
        )
        whole = rearrange(z, "b (kv g d) -> b 1 kv g d", kv=delta.shape[2], g=delta.shape[3])
        delta = torch.where(is_kept, delta, -whole)
    return rearrange(delta, "b v kv g d -> b v (kv g d)")


def hidden_masses(pattern: Float[Tensor, "b kv g k"], chosen: Bool[Tensor, "b 1 v 1 k"]) -> Float[Tensor, "b v h"]:
    """The share of each head's pattern that falls on the keys of every variant."""
    by_head = rearrange(pattern, "b kv g k -> b k (kv g)")
    return rearrange(chosen, "b 1 v 1 k -> b v k").to(pattern.dtype) @ by_head


def joint_z(
    q: Float[Tensor, "s h d"],
    k: Float[Tensor, "s kv d"],
    v: Float[Tensor, "s kv d"],
    *,
    scoring: Scoring,
    copies: MaskedCopies,
) -> Float[Tensor, "n c"]:
    """Head outputs ``c = (kv g d)`` of the baseline rows of one prompt, then the difference that each variant makes.

    The prompt and its masked copies are the rows of one batch, each with its own -inf mask, under one softmax. The
    differences are those of ``z_difference``. All scores lie in memory at once: for short prompts.
    """
    num_rows, r = len(copies.queries), copies.num_baseline
    q = rearrange(q.index_select(0, copies.queries), "n (kv g) d -> kv (g n) d", kv=k.shape[1])
    k, v = rearrange(k, "k kv d -> kv k d"), rearrange(v, "k kv d -> kv k d")
    # Keys come before rows: torch's softmax and product are faster over a long last axis.
    queries = rearrange(q, "kv gn d -> kv d gn")
    if scoring.soft_cap is None:
        scores = torch.baddbmm(copies.masks, k, queries, alpha=scoring.scale)
    else:
        scores = bent(k @ queries * scoring.scale, scoring.soft_cap).add_(copies.masks)
    sink = scoring.sink(k.shape[0], "kv 1 g 1")
    by_row = None if sink is None else repeat(sink, "kv 1 g 1 -> kv 1 (g n)", n=num_rows)
    pattern = softmax(scores, by_row, dim=1)
    grouped = rearrange(pattern, "kv k (g n) -> kv k g n", n=num_rows)
    lost = grouped[..., copies.origin : copies.origin + 1] * copies.hidden
    grouped[..., r:].mul_(lost.sum(1, keepdim=True)).sub_(lost)
    z = attended(rearrange(pattern, "kv k gn -> kv gn k"), v)
    return rearrange(z, "kv (g n) d -> n (kv g d)", n=num_rows)


def leave_one_out(
    scores: Float[Tensor, "b kv g k"],
    pattern: Float[Tensor, "b kv g k"],
    values: Float[Tensor, "b kv k d"],
    *,
    visible: Bool[Tensor, "b 1 1 k"],
    sink: Float[Tensor, "kv g 1"] | None = None,
) -> Float[Tensor, "b k c"]:
    """``z_difference`` of every key hidden by itself, with a cost that grows with the keys and not with their square.

    With one key hidden, z' - z = a_p·(o_p - v_p), and o_p = Σ_{k≠p} a_k·v_k / Σ_{k≠p} a_k. Both sums leave the key out
    instead of subtracting it, so nothing cancels. The key that holds the most is the one whose absence could leave
    sums that underflow: its o_p is computed by a masked softmax. A query with no other ``visible`` key attends to
    nothing, o_p = 0. A ``sink`` is in the lower sum with its share, and in the upper with none.
    """
    a = rearrange(pattern, "b kv g k -> b kv g k 1")
    v = rearrange(values, "b kv k d -> b kv 1 k d")
    largest = pattern.argmax(-1, keepdim=True)
    rest = softmax(scores.scatter(-1, largest, -torch.inf), sink)
    rest.masked_fill_(visible.sum(-1, keepdim=True) == 1, 0.0)
    shares = sums_without_each(a)
    if sink is not None:
        shares = shares + rearrange(sink_share(scores, sink), "b kv g 1 -> b kv g 1 1")
    without = sums_without_each(a * v).div_(shares)
    place = rearrange(largest, "b kv g 1 -> b kv g 1 1").expand(*pattern.shape[:3], 1, values.shape[-1])
    without.scatter_(3, place, rearrange(attended(rest, values), "b kv g d -> b kv g 1 d"))
    return rearrange(without.sub_(v).mul_(a), "b kv g k d -> b k (kv g d)")


def sums_without_each(x: Float[Tensor, "b kv g k d"]) -> Float[Tensor, "b kv g k d"]:
    """For every key the sum over all other keys: first inside its block of √k keys, then over the other blocks."""
    num_keys = x.shape[3]
    width = math.isqrt(num_keys - 1) + 1
    num_blocks = -(-num_keys // width)
    padded = F.pad(x, (0, 0, 0, num_blocks * width - num_keys))
    blocks = rearrange(padded, "b kv g (n w) d -> b kv g n w d", n=num_blocks)
    inside = _all_but_own(width, x) @ blocks
    beside = _all_but_own(num_blocks, x) @ blocks.sum(-2)
    sums = rearrange(inside.add_(rearrange(beside, "b kv g n d -> b kv g n 1 d")), "b kv g n w d -> b kv g (n w) d")
    return sums[..., :num_keys, :]


def _all_but_own(size: int, like: Tensor) -> Float[Tensor, "size size"]:
    return 1 - torch.eye(size, dtype=like.dtype, device=like.device)
