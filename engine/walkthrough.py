"""One cell step by step: every tensor on the way from the residual stream to the differences, for people to look at.

The steps are the engine's own kernels, called one by one. Axes as in ``attention``; ``e`` residual channel,
``f`` MLP channel, ``n`` baseline rows with the difference row behind them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from engine.kernels.attention import query_scores, z_difference
from engine.kernels.batches import Batch, make_batch
from engine.kernels.causal import causal_z
from engine.kernels.difference import Carried, carried
from engine.kernels.masks import query_masks
from engine.kernels.scores import softmax
from engine.model.decoder import Decoder
from engine.sweeps.sweep import sweep
from engine.text.knockouts import single_tokens
from engine.text.prompts import Prompt


@dataclass(frozen=True)
class Stop:
    """A named tensor with its axes in einops notation."""

    name: str
    axes: str
    value: Tensor


@torch.inference_mode()
def walk(decoder: Decoder, prompt: Prompt, *, layer: int, token: int) -> Iterator[Stop]:
    """Every tensor of one layer with one token masked, in the order in which it is computed."""
    batch = make_batch([prompt.token_ids], [single_tokens(len(prompt), [token])], decoder.device)
    stream = _entering(decoder, batch, layer)
    block, attention = decoder.layers[layer], decoder.layers[layer].attention
    yield Stop("residual", "s e", stream)
    yield Stop("normed", "s e", block.normed(stream))
    rotaries = decoder.rotaries(batch.positions, len(prompt))
    q, k, v = (batch.prompts.heads(x) for x in block.project(stream, rotaries, max_rows=len(prompt)))
    yield Stop("q", "b (kv g) s d", q)
    yield Stop("k", "b kv s d", k)
    yield Stop("v", "b kv s d", v)
    masks, scoring = query_masks(batch, attention.window), attention.scoring
    sink = scoring.sink(attention.heads.num_kv_heads, "kv g 1")
    scores = query_scores(q[:, :, -1], k, scoring=scoring, visible=masks.visible)
    yield Stop("scores of the query", "b kv g k", scores)
    pattern = softmax(scores, sink)
    yield Stop("pattern", "b kv g k", pattern)
    masked = torch.where(rearrange(batch.hidden, "b 1 1 1 k -> b 1 1 k"), -torch.inf, scores)
    yield Stop("masked pattern", "b kv g k", softmax(masked, sink))
    z = batch.prompts.from_heads(causal_z(q, k, v, scoring=scoring, window=attention.window))
    yield Stop("z", "s (kv g d)", z)
    delta = z_difference(scores, pattern, v, hidden=batch.hidden, blind=masks.blind, sink=sink)
    yield Stop("z difference", "b v (kv g d)", delta)
    attn_out = block.carry_attn(carried(z, batch.variants.rows(delta), batch.origins))
    yield Stop("attn_out and its difference", "n e", attn_out.rows)
    middle = carried(attn_out.baseline + stream, attn_out.delta, batch.origins)
    entering = Carried(stream, len(stream), batch.origins.none())
    mlp_out = block.carry_mlp(entering, middle, max_rows=len(middle.rows))
    yield Stop("mlp_out and its difference", "n e", mlp_out.rows)
    yield Stop("residual update and its difference", "n e", attn_out.rows + mlp_out.rows)


def _entering(decoder: Decoder, batch: Batch, layer: int) -> Float[Tensor, "s e"]:
    if layer == 0:
        return decoder.embed(batch.token_ids, batch.positions)
    streams = {readout.layer: readout.residual for readout in sweep(decoder, batch, layers=[layer])}
    return streams[layer - 1]
