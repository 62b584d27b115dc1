"""The layer loop over a model that runs its own layers: each is called again on rows in which its attention is given.

A forward of the unmasked prompt shows what every layer is called with. A layer called again so shows what its
attention works on, from which the engine's kernels make every variant's head outputs. After attention a layer treats
positions alike, so it is called once more with the query's stream at every position, and position j gets the head
outputs of variant j. What leaves it is subtracted from the baseline's, which is one of the rows.

Axes as in ``sweep``.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F  # noqa: N812
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from engine.errors import ModelError
from engine.kernels.attention import attended, hidden_masses
from engine.kernels.batches import Batch
from engine.kernels.masks import Masks, visible_keys
from engine.model.additions import caught
from engine.model.borrowing import borrowed
from engine.model.foreign import Foreign, ForeignLayer
from engine.model.handover import Attending, Handover
from engine.model.visits import Visit
from engine.sweeps.probe import Probe
from engine.sweeps.readout import Limits, Readout, Site
from engine.sweeps.variants import Variants, only_cut

SAME = {torch.float64: 1e-4, torch.float32: 1e-3}
"""Share of the largest channel by which a layer's output may differ when it is called on other places; norms compute
in float32 at best. Of narrower dtypes it is ``SAME_NARROW``."""
SAME_NARROW = 0.1


def relay(
    foreign: Foreign,
    batch: Batch,
    *,
    layers: Collection[int],
    to_end: bool = False,
    limits: Limits | None = None,
    probe: Probe | None = None,
) -> Iterator[Readout]:
    """As ``sweep``, for one prompt. Raises ``ModelError`` for a layer that cannot be followed on this prompt."""
    assert len(batch.prompts.lengths) == 1
    run = _Run(foreign, batch, limits or Limits(), probe or Probe())
    visits = foreign.visits(batch.token_ids)
    last = len(visits) - 1 if to_end else max(layers)
    for index in range(last + 1):
        yield run.layer(index, visits.pop(0), measured=index in layers, final=index == last)


@dataclass(frozen=True)
class _Run:
    """One prompt on its way through a model."""

    foreign: Foreign
    batch: Batch
    limits: Limits
    probe: Probe

    def layer(self, index: int, visit: Visit, *, measured: bool, final: bool) -> Readout:
        """One layer; with ``final`` the stream is that of the queries alone."""
        leaving = visit.leaving[0].to(self.foreign.dtype)
        residual = self.batch.at_query(leaving) if final else leaving
        if not measured:
            return Readout(index, residual)
        layer = self.foreign.layers[index]
        with borrowed(self.foreign.model, attending := Attending()):
            visit.again()
            _, handed = attending.seen[-1]
            heads, masses = self._attend(index, handed)
            left, added = self._rows(layer, visit, heads, attending)
        self._require_same(left.baseline, self.batch.at_query(leaving), index)
        return Readout(index, residual, tuple(self._sites(visit, heads, left, added)), masses)

    def _sites(self, visit: Visit, heads: Site, left: Site, attn: Site) -> Iterator[Site]:
        """Full, Attn, heads and those that were asked for."""
        entering = self.batch.at_query(visit.entering[0].to(self.foreign.dtype))
        full = Site(left.baseline - entering, left.delta)
        yield from (full, attn, self._filled(heads))
        if "MLP" in self.probe.sites:
            yield Site(full.baseline - attn.baseline, full.delta - attn.delta)
        if "Resid" in self.probe.sites:
            yield left

    def _filled(self, heads: Site) -> Site:
        """Heads as wide as the widest of the model: zeros change no distance."""
        width, count = self.foreign.heads.head_dim, heads.num_vectors

        def fill(x: Float[Tensor, "n c"]) -> Float[Tensor, "n c2"]:
            by_head = rearrange(x, "n (h d) -> n h d", h=count)
            return rearrange(F.pad(by_head, (0, width - by_head.shape[2])), "n h d -> n (h d)")

        if heads.baseline.shape[1] == count * width:
            return heads
        left = None if heads.left is None else fill(heads.left)
        return Site(fill(heads.baseline), fill(heads.delta), count, left)

    def _attend(self, index: int, handed: Handover) -> tuple[Site, Float[Tensor, "m h"] | None]:
        """The queries' head outputs and how the variants' differ; and the hidden share of the pattern, if asked for."""
        batch = self.batch
        scores = handed.scores(batch.query_positions)
        pattern = handed.pattern(scores)
        masks = self._masks(handed, index)
        values = handed.v[None].expand(len(batch.of), -1, -1, -1)
        z = rearrange(attended(pattern, values), "b kv g d -> b (kv g d)")
        delta = self._variants.of(scores, pattern, values, masks, z=z, sink=handed.sink)
        left = self._variants.left(scores, pattern, values, sink=handed.sink)
        if self._cut_heads is not None:
            delta, left = only_cut(self._cut_heads[index], delta, left)
        masses = batch.variants.rows(hidden_masses(pattern, batch.chosen)) if self.probe.masses else None
        return Site(z, delta, self.foreign.heads.num_heads, left), masses

    def _masks(self, handed: Handover, index: int) -> Masks:
        """Raises ``ModelError`` where the queries do not see what the causal order and the window leave them."""
        sight = self.foreign.sights[index]
        visible = visible_keys(self.batch.query_positions, self.batch.prompts.width, sight.window)[:, None]
        if not bool((handed.visible(self.batch.query_positions) == visible).all()):
            raise ModelError(
                f"layer {index} of {self.foreign.architecture} hides keys of this prompt beyond the causal order and "
                "one sliding window (chunks, blocks, chosen keys), which is not supported; give shorter prompts"
            )
        return Masks(visible[:, None], None if sight.has_sink else self.batch.blind(sight.window))

    def _rows(self, layer: ForeignLayer, visit: Visit, heads: Site, attending: Attending) -> tuple[Site, Site]:
        """The layer on rows: the queries as they are, then their variants. What leaves it, and what attention adds."""
        of = self.batch.query_origins.rows
        z = torch.cat((heads.baseline, heads.baseline.index_select(0, of) + heads.delta))
        places = self.batch.query_positions
        places = torch.cat((places, places.index_select(0, of)))
        length = visit.entering.shape[1]
        padding = -len(z) % length
        z, places = F.pad(z, (0, 0, 0, padding)), F.pad(places, (0, padding))
        left, added = [], []
        for some, where in zip(z.split(length), places.split(length), strict=True):
            attending.given = rearrange(some, "s (h c) -> s h c", h=heads.num_vectors)
            with caught(layer.module, layer.added) as attn:
                left.append(visit.at(where).again()[0])
            added.append(attn[0])
        attending.given = None
        return self._site(torch.cat(left), heads.delta), self._site(torch.cat(added), heads.delta)

    def _site(self, rows: Float[Tensor, "n e"], moved: Float[Tensor, "m c"]) -> Site:
        """Baseline and differences from it; exactly 0 where the heads have not ``moved``."""
        wide, count = rows.to(self.foreign.dtype), len(self.batch.of)
        baseline, variants = wide[:count], wide[count : count + len(moved)]
        delta = variants - baseline.index_select(0, self.batch.query_origins.rows)
        return Site(baseline, delta.masked_fill((moved == 0).all(1, keepdim=True), 0.0))

    def _require_same(self, found: Float[Tensor, "b e"], expected: Float[Tensor, "b e"], index: int) -> None:
        """Raises ``ModelError`` where the layer gives other vectors on other places. What is not finite passes."""
        gap, largest = (found - expected).abs().amax(), expected.abs().amax()
        if bool(gap > SAME.get(self.foreign.stored, SAME_NARROW) * largest):
            raise ModelError(
                f"layer {index} of {self.foreign.architecture} does not treat positions alike behind its attention, "
                "so it cannot be run on masked copies; this architecture is not supported"
            )

    @cached_property
    def _variants(self) -> Variants:
        return Variants(self.batch, self.probe, self.limits)

    @cached_property
    def _cut_heads(self) -> Float[Tensor, "l h"] | None:
        """1 where a head is cut, 0 elsewhere."""
        cut = self.probe.cut_heads(len(self.foreign.layers), self.foreign.heads.num_heads)
        return None if cut is None else torch.from_numpy(cut).to(self.foreign.device, self.foreign.dtype)
