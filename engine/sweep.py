"""The layer loop: one pass in which every knockout of every layer rides along.

The batch of a layer is the baseline and one row per variant. Queries, keys and values are common to all of them, so
variants part from the baseline only at the scores; from there on a variant is one difference row at its query. One
product per weight matrix serves baseline and difference rows; the baseline goes on to the next layer, the difference
rows are read out and dropped, because every layer is cut on its own.

Axes as in ``batches`` and ``attention``; ``e`` residual channel.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from engine.attention import causal_z, masked_pattern, query_scores, visible_keys, z_difference
from engine.batches import Batch
from engine.decoder import Attention, Decoder, Heads, Layer
from engine.difference import Carried, carried, carry_in_chunks
from engine.rotary import RotaryTables


@dataclass(frozen=True, slots=True)
class Site:
    """A vector that is read: its baseline value per prompt and its difference per variant, ``h`` vectors each."""

    baseline: Float[Tensor, "b h c"]
    delta: Float[Tensor, "m h c"]


@dataclass(frozen=True, slots=True)
class Readout:
    """What one layer shows: the stream that leaves it and, where the layer is measured, its sites.

    ``residual`` has all rows, or only the queries' rows when no later layer follows.
    """

    layer: int
    residual: Float[Tensor, "r e"]
    updates: Site | None = None
    """Full and Attn, in this order along ``h``."""
    heads: Site | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what a pass holds at once; they change its memory, not its numbers."""

    mlp_rows: int = 1024
    """Rows that go through an MLP together."""
    pattern_cells: int = 1 << 22
    """Cells of the variants' patterns (prompt x variant x head x key) made together."""


def sweep(
    decoder: Decoder, batch: Batch, *, layers: Collection[int], to_end: bool = False, limits: Limits | None = None
) -> Iterator[Readout]:
    """Run the layers up to the last of ``layers`` (all of them with ``to_end``) and yield each layer's readout.

    Knockouts are made in ``layers`` only; the others pass the baseline on. The caller decides on inference mode.
    """
    limits = limits or Limits()
    last = len(decoder.layers) - 1 if to_end else max(layers)
    rotary = decoder.rotary(batch.positions, batch.prompts.width)
    residual = decoder.embed(batch.token_ids)
    for index in range(last + 1):
        layer, measured, final = decoder.layers[index], index in layers, index == last
        z = _attend(layer, batch, rotary, residual, limits, measured=measured, final=final)
        attn_out = layer.attention.output.carry(z)
        mid = _add_residual(attn_out, batch.at_query(residual) if final else residual)
        mlp_out = carry_in_chunks(layer.mlp.carry, layer.mlp_norm.carry(mid), max_rows=limits.mlp_rows)
        residual = mid.baseline + mlp_out.baseline
        sites = _sites(batch, decoder.heads, z, attn_out, mlp_out, final=final) if measured else {}
        yield Readout(index, residual, **sites)


def _attend(
    layer: Layer,
    batch: Batch,
    rotary: RotaryTables,
    residual: Float[Tensor, "r e"],
    limits: Limits,
    *,
    measured: bool,
    final: bool,
) -> Carried:
    """Head outputs of every row (of the queries alone when ``final``) and, if ``measured``, their differences."""
    attention, prompts = layer.attention, batch.prompts
    q, k, v = attention.project(layer.attn_norm(residual), rotary)
    keys, values = prompts.grid(k), prompts.grid(v)
    scores = query_scores(q.index_select(0, batch.query_rows), keys, scale=attention.scale)
    visible = visible_keys(batch.query_positions, prompts.width, attention.window)
    if final:
        z = masked_pattern(scores, rearrange(visible, "b k -> b 1 1 k")) @ rearrange(values, "b k kv d -> b kv k d")
    else:
        z = prompts.rows(causal_z(prompts.grid(q), keys, values, scale=attention.scale, window=attention.window))
    z = rearrange(z, "r kv g d -> r (kv g d)")
    if not measured:
        return Carried(z, batch.origins.none())
    hidden_parts = batch.hidden.split(_variants_at_once(batch, attention, limits), dim=1)
    delta = torch.cat([z_difference(scores, values, visible=visible, hidden=part) for part in hidden_parts], dim=1)
    delta = rearrange(batch.variants.rows(delta), "m kv g d -> m (kv g d)")
    return carried(z, delta, batch.query_origins if final else batch.origins)


def _variants_at_once(batch: Batch, attention: Attention, limits: Limits) -> int:
    b, _, k = batch.hidden.shape
    return max(1, limits.pattern_cells // (b * k * attention.heads.num_heads))


def _add_residual(attn_out: Carried, residual: Float[Tensor, "r e"]) -> Carried:
    """The stream between attention and MLP; a difference in ``attn_out`` is the difference of the stream."""
    mid = attn_out.with_rows(attn_out.rows.clone())
    mid.baseline.add_(residual)
    return mid


def _sites(
    batch: Batch, heads: Heads, z: Carried, attn_out: Carried, mlp_out: Carried, *, final: bool
) -> dict[str, Site]:
    """The sites at the queries. Full is what attention and MLP add together; no two streams are subtracted."""

    def at_query(x: Carried) -> Float[Tensor, "b c"]:
        return x.baseline if final else batch.at_query(x.baseline)

    def by_head(rows: Float[Tensor, "n c"]) -> Float[Tensor, "n h d"]:
        return rearrange(rows, "n (h d) -> n h d", h=heads.num_heads)

    attn, mlp = at_query(attn_out), at_query(mlp_out)
    baseline = torch.stack((attn + mlp, attn), dim=1)
    delta = torch.stack((attn_out.delta + mlp_out.delta, attn_out.delta), dim=1)
    return {"updates": Site(baseline, delta), "heads": Site(by_head(at_query(z)), by_head(z.delta))}
