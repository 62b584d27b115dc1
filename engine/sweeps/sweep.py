"""The layer loop: one pass in which every knockout of every layer rides along.

The batch of a layer is the baseline and one row per variant. Queries, keys and values are common to all of them, so
variants part from the baseline only at the scores; from there on a variant is one difference row at its query. One
product per weight matrix serves baseline and difference rows; the baseline goes on to the next layer, the difference
rows are read out and dropped, because every layer is cut on its own.

Axes as in ``batches`` and ``attention``; ``e`` residual channel.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from engine.kernels.attention import attended, hidden_masses, joint_z, query_scores
from engine.kernels.batches import Batch
from engine.kernels.causal import causal_z
from engine.kernels.difference import Carried, carried
from engine.kernels.masks import MaskedCopies, Masks, masked_copies, query_masks
from engine.kernels.rotary import Rotaries
from engine.kernels.scores import softmax
from engine.model.decoder import Decoder
from engine.model.layer import Layer
from engine.sweeps.probe import Probe
from engine.sweeps.readout import Limits, Readout, Site
from engine.sweeps.variants import Variants, only_cut


def sweep(
    decoder: Decoder,
    batch: Batch,
    *,
    layers: Collection[int],
    to_end: bool = False,
    limits: Limits | None = None,
    probe: Probe | None = None,
) -> Iterator[Readout]:
    """Run the layers up to the last of ``layers`` (all of them with ``to_end``) and yield each layer's readout.

    Knockouts are made in ``layers`` only; the others pass the baseline on. The caller decides on inference mode.
    """
    runs = {device: _run(decoder, batch, device, limits, probe) for device in dict.fromkeys(decoder.places)}
    last = len(decoder.layers) - 1 if to_end else max(layers)
    residual, passing = decoder.embed(batch.token_ids, batch.positions), decoder.layers[: last + 1]
    for index, device in enumerate(decoder.places[: last + 1]):
        entering = residual.to(device)
        readout = runs[device].layer(index, passing[index], entering, measured=index in layers, final=index == last)
        residual = readout.residual
        yield readout


def _run(decoder: Decoder, batch: Batch, device: torch.device, limits: Limits | None, probe: Probe | None) -> "_Run":
    """What the layers of one device need of the batch: rows move from device to device, weights never do."""
    here, seen = batch.to(device), decoder.seen_from(device)
    return _Run(seen, here, seen.rotaries(here.positions, here.prompts.width), limits or Limits(), probe or Probe())


@dataclass(frozen=True)
class _Run:
    """One batch on its way through those layers of a decoder that lie on one device."""

    decoder: Decoder
    batch: Batch
    rotaries: Rotaries
    limits: Limits
    probe: Probe
    masks: dict[int | None, Masks] = field(default_factory=dict)
    copies: dict[tuple[int | None, bool], MaskedCopies] = field(default_factory=dict)

    def layer(
        self, index: int, layer: Layer, residual: Float[Tensor, "r e"], *, measured: bool, final: bool
    ) -> Readout:
        """One layer; ``final`` drops the rows that nothing reads, all but the queries'.

        Full is what attention and MLP add together; no two streams are subtracted.
        """
        batch = self.batch
        z, left, masses = self._attend(index, layer, residual, measured=measured, final=final)
        attn_out = layer.carry_attn(z)
        added, attn_delta = attn_out.split(attn_out.rows)
        attn = (added if final else batch.at_query(added)).clone()
        entering = batch.at_query(residual) if final else residual
        added.add_(entering)  # from here on the stream in the middle
        unmoved = Carried(entering, len(entering), attn_out.origins.none())
        mlp_out = layer.carry_mlp(unmoved, attn_out, max_rows=self.limits.rows)
        total, full_delta = attn_out.split(attn_out.rows + mlp_out.rows)
        sites: tuple[Site, ...] = ()
        if measured:
            full = attn + self._at_query(mlp_out, final=final)
            heads = Site(self._at_query(z, final=final), z.delta, self.decoder.heads.num_heads, left)
            leaving = Site(total if final else batch.at_query(total), full_delta)
            more = self._more(layer, heads, self._at_query(mlp_out, final=final), mlp_out.delta, leaving)
            sites = (Site(full, full_delta), Site(attn, attn_delta), heads, *more)
        return Readout(index, total, sites, masses)

    def _more(
        self, layer: Layer, heads: Site, mlp: Float[Tensor, "b e"], mlp_delta: Float[Tensor, "m e"], leaving: Site
    ) -> Iterator[Site]:
        """The sites that were asked for."""
        if "MLP" in self.probe.sites:
            yield Site(mlp, mlp_delta)
        if "Resid" in self.probe.sites:
            yield leaving
        if "Result_h" in self.probe.sites:
            left = None if heads.left is None else layer.head_results(heads.left)
            yield Site(layer.head_results(heads.baseline), layer.head_results(heads.delta), heads.num_vectors, left)

    def _at_query(self, x: Carried, *, final: bool) -> Float[Tensor, "b c"]:
        """The queries' baseline rows; after the last layer's attention there are no others."""
        return x.baseline if final else self.batch.at_query(x.baseline)

    def _attend(
        self, index: int, layer: Layer, residual: Float[Tensor, "r e"], *, measured: bool, final: bool
    ) -> tuple[Carried, Float[Tensor, "m c"] | None, Float[Tensor, "m h"] | None]:
        """Head outputs of every row (of the queries alone when ``final``) and, if ``measured``, their differences; what
        is left of them, where that may be little; and the hidden share of the baseline's pattern, if it was asked for.
        """
        attention, prompts, masks = layer.attention, self.batch.prompts, self._masks(layer.attention.window)
        scoring, sink = attention.scoring, attention.scoring.sink(attention.heads.num_kv_heads, "kv g 1")
        q, k, v = layer.project(residual, self.rotaries, max_rows=self.limits.rows)
        if measured and self._short and masks.blind is None and sink is None:
            copies = self._copies(attention.window, only_query=final)
            z = joint_z(q, k, v, scoring=scoring, copies=copies)
            return (
                Carried(z, copies.num_baseline, self.batch.query_origins if final else self.batch.origins),
                None,
                None,
            )
        keys, values = prompts.heads(k), prompts.heads(v)
        read_keys, read_values = self.batch.of_readings(keys), self.batch.of_readings(values)
        scores = query_scores(self.batch.at_query(q), read_keys, scoring=scoring, visible=masks.visible)
        pattern = softmax(scores, sink)
        if final:
            z = rearrange(attended(pattern, read_values), "b kv g d -> b (kv g d)")
        else:
            grid = causal_z(prompts.heads(q), keys, values, scoring=scoring, window=attention.window)
            z = prompts.from_heads(grid)
        if not measured:
            return Carried(z, len(z), self.batch.origins.none()), None, None
        at_query = z if final else self.batch.at_query(z)
        delta = self._variants.of(scores, pattern, read_values, masks, z=at_query, sink=sink)
        left = self._variants.left(scores, pattern, read_values, sink=sink)
        if self._cut_heads is not None:
            delta, left = only_cut(self._cut_heads[index], delta, left)
        variants = self.batch.variants
        masses = variants.rows(hidden_masses(pattern, self.batch.chosen)) if self.probe.masses else None
        return carried(z, delta, self.batch.query_origins if final else self.batch.origins), left, masses

    def _masks(self, window: int | None) -> Masks:
        if window not in self.masks:
            self.masks[window] = query_masks(self.batch, window)
        return self.masks[window]

    def _copies(self, window: int | None, *, only_query: bool) -> MaskedCopies:
        key = (window, only_query)
        if key not in self.copies:
            heads, dtype = self.decoder.heads, self.decoder.dtype
            group = heads.num_heads // heads.num_kv_heads
            self.copies[key] = masked_copies(self.batch, window, only_query=only_query, group=group, dtype=dtype)
        return self.copies[key]

    @cached_property
    def _variants(self) -> Variants:
        return Variants(self.batch, self.probe, self.limits)

    @cached_property
    def _cut_heads(self) -> Float[Tensor, "l h"] | None:
        """1 where a head is cut, 0 elsewhere."""
        cut = self.probe.cut_heads(len(self.decoder.layers), self.decoder.heads.num_heads)
        if cut is None:
            return None
        return torch.from_numpy(cut).to(self.decoder.device, self.decoder.dtype, non_blocking=True)

    @cached_property
    def _short(self) -> bool:
        """Whether the batch is one prompt whose scores, with those of all its masked copies, may lie in memory."""
        prompts, num_heads = self.batch.prompts, self.decoder.heads.num_heads
        cells = (prompts.width + self.batch.variants.width) * prompts.width * num_heads
        return self.probe.is_plain and len(self.batch.of) == 1 and cells <= self.limits.joint_cells
