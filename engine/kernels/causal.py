"""Causal grouped-query attention of the unmasked prompt.

Axes: ``b`` prompt, ``s`` position, ``k`` key position, ``h`` query head = ``(kv g)``, ``kv`` key/value head, ``g``
query head in its kv group, ``d`` head channel, ``n`` position in a block of queries.
"""

import torch
import torch.nn.functional as F  # noqa: N812
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from engine.kernels.caps import bent
from engine.kernels.masks import visible_keys
from engine.kernels.products import beats_default, multiply
from engine.kernels.scores import Scoring, softmax

BLOCK = 256
"""Queries that are attended together: their scores stay in the caches, and keys after the block are skipped."""
BLOCKWISE_FROM = BLOCK * 3 // 2
"""Positions above which blocks pay, although the last one is filled up."""
BLOCKWISE_CELLS = 1 << 22
"""Scores of a block (query head in its group x query x key) beyond which blocks leave the caches, and cost memory."""


def causal_z(
    q: Float[Tensor, "b h s d"],
    k: Float[Tensor, "b kv s d"],
    v: Float[Tensor, "b kv s d"],
    *,
    scoring: Scoring,
    window: int | None,
) -> Float[Tensor, "b h s d"]:
    """Head outputs of all positions, unmasked; a window of w lets a query see itself and w - 1 keys before it."""
    if not scoring.is_plain:
        return scored_z(q, k, v, scoring=scoring, window=window)
    scale = scoring.scale
    cells = q.shape[1] // k.shape[1] * BLOCK * q.shape[2]
    if q.shape[2] > BLOCKWISE_FROM and cells < BLOCKWISE_CELLS and beats_default(q):
        return blockwise_z(q, k, v, scale=scale, window=window)
    num_positions = q.shape[2]
    sliding = window is not None and window < num_positions
    if sliding and num_positions > BLOCKWISE_FROM:
        return scored_z(q, k, v, scoring=scoring, window=window)  # torch's own takes a mask of all pairs
    grouped = q.shape[1] > k.shape[1]
    if grouped and q.device.type != "cpu":
        # Off the CPU only the kernel that holds all scores in memory takes groups in float32.
        k, v = (repeat(x, "b kv s d -> b (kv g) s d", g=q.shape[1] // k.shape[1]) for x in (k, v))
        grouped = False
    positions = torch.arange(num_positions, device=q.device)
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=visible_keys(positions, num_positions, window) if sliding else None,
        is_causal=not sliding,
        scale=scale,
        enable_gqa=grouped,
    )


def scored_z(
    q: Float[Tensor, "b h s d"],
    k: Float[Tensor, "b kv s d"],
    v: Float[Tensor, "b kv s d"],
    *,
    scoring: Scoring,
    window: int | None,
) -> Float[Tensor, "b h s d"]:
    """``causal_z`` under a soft cap or beside sinks, which torch's own kernels do not know, or in windows of a long
    prompt: it holds the scores of one block of queries.
    """
    num_kv, num_positions = k.shape[1], q.shape[2]
    grouped = rearrange(q * scoring.scale, "b (kv g) s d -> b kv g s d", kv=num_kv)
    keys, values = rearrange(k, "b kv k d -> b kv 1 d k"), rearrange(v, "b kv k d -> b kv 1 k d")
    sink = scoring.sink(num_kv, "kv g 1 1")
    parts = []
    for start in range(0, num_positions, BLOCK):
        stop = min(start + BLOCK, num_positions)
        first = 0 if window is None else max(0, start - window + 1)
        visible = visible_keys(torch.arange(start, stop, device=q.device), stop, window)[:, first:]
        scores = bent(grouped[:, :, :, start:stop] @ keys[..., first:stop], scoring.soft_cap)
        pattern = softmax(scores.masked_fill_(~visible, -torch.inf), sink)
        parts.append(pattern @ values[..., first:stop, :])
    return rearrange(torch.cat(parts, dim=3), "b kv g s d -> b (kv g) s d")


def blockwise_z(
    q: Float[Tensor, "b h s d"],
    k: Float[Tensor, "b kv s d"],
    v: Float[Tensor, "b kv s d"],
    *,
    scale: float,
    window: int | None,
) -> Float[Tensor, "b h s d"]:
    """``causal_z`` by the faster products, which torch's own CPU kernel does not use.

    Blocks begin at multiples of the block and take all of its keys, so that few shapes occur: the library makes a
    kernel for each new one, which takes milliseconds.
    """
    num_prompts, num_kv, num_positions = k.shape[:3]
    padding = (0, 0, 0, -num_positions % BLOCK)
    grouped = rearrange(F.pad(q, padding), "b (kv g) s d -> (b kv) g s d", kv=num_kv)
    keys = rearrange(F.pad(k * scale, padding), "b kv k d -> (b kv) k d").contiguous()
    values = rearrange(F.pad(v, padding), "b kv k d -> (b kv) d k").contiguous()
    z = torch.empty_like(grouped, memory_format=torch.contiguous_format)
    for start in range(0, num_positions, BLOCK):
        stop = start + BLOCK
        first = 0 if window is None else max(0, start - window + 1) // BLOCK * BLOCK
        hidden = ~visible_keys(torch.arange(start, stop, device=q.device), stop, window)[:, first:]
        partly = slice(0 if window is not None else start - first, None)
        hidden = hidden[:, partly].contiguous()
        for head, (rows, all_keys) in enumerate(zip(grouped, keys, strict=True)):
            scores = multiply(rearrange(rows[:, start:stop], "g n d -> (g n) d"), all_keys[first:stop])
            by_query = rearrange(scores, "(g n) k -> g n k", n=BLOCK)
            by_query[..., partly].masked_fill_(hidden, -torch.inf)
            rest = multiply(torch.softmax(scores, dim=-1), values[head, :, first:stop].contiguous())
            z[head, :, start:stop] = rearrange(rest, "(g n) d -> g n d", n=BLOCK)
    whole = rearrange(z, "(b kv) g s d -> b (kv g) s d", b=num_prompts)
    return whole[:, :, :num_positions]
