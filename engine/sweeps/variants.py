"""The head outputs of every variant of a batch, as differences from its query's.

Axes as in ``batches`` and ``attention``.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from engine.kernels.attention import leave_one_out, value_difference, z_difference
from engine.kernels.batches import Batch
from engine.kernels.masks import Masks
from engine.kernels.remains import masked_z, replaced_z
from engine.sweeps.probe import Probe
from engine.sweeps.readout import Limits


@dataclass(frozen=True)
class Variants:
    """What the knockouts of a batch do to its queries' attention."""

    batch: Batch
    probe: Probe
    limits: Limits

    def of(
        self,
        scores: Float[Tensor, "b kv g k"],
        pattern: Float[Tensor, "b kv g k"],
        values: Float[Tensor, "b kv k d"],
        masks: Masks,
        *,
        z: Float[Tensor, "b c"],
        sink: Float[Tensor, "kv g 1"] | None = None,
    ) -> Float[Tensor, "m c"]:
        """The variants' differences from the queries' own ``z``: one masked softmax for each, or a leave-one-out where
        single tokens are many.
        """
        if self.probe.intervention != "mask":
            return self.batch.variants.rows(self._replaced(pattern, values, z))
        if self.batch.variants.width > self.limits.masked_variants and self.batch.single_keys is not None:
            return self.batch.variants.rows(self._left_out(scores, pattern, values, masks, sink))
        at_once = max(1, self.limits.pattern_cells // scores.numel())
        hidden = self.batch.hidden.split(at_once, dim=2)
        blind = [None] * len(hidden) if masks.blind is None else masks.blind.split(at_once, dim=2)
        parts = [
            z_difference(scores, pattern, values, hidden=h, blind=b, sink=sink)
            for h, b in zip(hidden, blind, strict=True)
        ]
        return self.batch.variants.rows(parts[0] if len(parts) == 1 else torch.cat(parts, dim=1))

    def left(
        self,
        scores: Float[Tensor, "b kv g k"],
        pattern: Float[Tensor, "b kv g k"],
        values: Float[Tensor, "b kv k d"],
        *,
        sink: Float[Tensor, "kv g 1"] | None = None,
    ) -> Float[Tensor, "m c"] | None:
        """The variants' head outputs themselves, where next to nothing may be left of them: a mask without a sink makes
        a whole pattern of whatever it leaves.
        """
        is_mask = self.probe.intervention == "mask"
        if is_mask and sink is None:
            return None
        means = self._means(values) if self.probe.intervention == "value-mean" else None
        at_once = max(1, self.limits.pattern_cells // scores.numel())
        parts = [
            replaced_z(pattern, values, hidden=hidden, means=means)
            if sink is None or not is_mask
            else masked_z(scores, values, hidden=hidden, sink=sink)
            for hidden in self.batch.hidden.split(at_once, dim=2)
        ]
        return self.batch.variants.rows(torch.cat(parts, dim=1))

    def _replaced(
        self, pattern: Float[Tensor, "b kv g k"], values: Float[Tensor, "b kv k d"], z: Float[Tensor, "b c"]
    ) -> Float[Tensor, "b v c"]:
        """The differences when hidden keys keep their share of the pattern and lose their value."""
        means = self._means(values) if self.probe.intervention == "value-mean" else None
        at_once = max(1, self.limits.pattern_cells // pattern.numel())
        parts = [
            value_difference(pattern, values, hidden=hidden, z=z, means=means)
            for hidden in self.batch.hidden.split(at_once, dim=2)
        ]
        return torch.cat(parts, dim=1)

    def _means(self, values: Float[Tensor, "b kv k d"]) -> Float[Tensor, "b kv 1 d"]:
        """The mean value of every head over its prompt; padding is 0."""
        return values.sum(2, keepdim=True) / rearrange(self._lengths.to(values.dtype), "b -> b 1 1 1")

    @cached_property
    def _lengths(self) -> Int[Tensor, " b"]:
        lengths = torch.tensor([self.batch.prompts.lengths[prompt] for prompt in self.batch.of], device="cpu")
        return lengths.to(self.batch.prompts.device, non_blocking=True)

    def _left_out(
        self,
        scores: Float[Tensor, "b kv g k"],
        pattern: Float[Tensor, "b kv g k"],
        values: Float[Tensor, "b kv k d"],
        masks: Masks,
        sink: Float[Tensor, "kv g 1"] | None,
    ) -> Float[Tensor, "b v c"]:
        """The differences of single hidden keys, some key/value heads at a time, to keep the sums in the caches."""
        b, kv, k, d = values.shape
        delta = values.new_empty(b, k, kv, scores.shape[2] * d)
        at_once = max(1, self.limits.pattern_cells * kv // (scores.numel() * d))
        for start in range(0, kv, at_once):
            part = slice(start, start + at_once)
            own_sink = None if sink is None else sink[part]
            heads = (x[:, part] for x in (scores, pattern, values))
            some = leave_one_out(*heads, visible=masks.visible, sink=own_sink)
            delta[:, :, part] = rearrange(some, "b k (kv c) -> b k kv c", c=delta.shape[3])
        flat = rearrange(delta, "b k kv c -> b k (kv c)")
        keys = self.batch.single_keys
        if self.batch.every_key or keys is None:
            return flat
        return flat.gather(1, rearrange(keys, "b v -> b v 1").expand(-1, -1, flat.shape[2]))


def only_cut(
    heads: Float[Tensor, " h"], delta: Float[Tensor, "m c"], left: Float[Tensor, "m c"] | None
) -> tuple[Float[Tensor, "m c"], Float[Tensor, "m c"] | None]:
    """Differences, and what is left, of variants that change only those ``heads`` that are not 0."""
    is_cut = repeat(heads, "h -> (h d)", d=delta.shape[1] // len(heads))
    return delta * is_cut, None if left is None else left.masked_fill(is_cut == 0, torch.inf)
