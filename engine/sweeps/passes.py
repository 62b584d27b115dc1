"""One pass over one or several prompts: from their token ids to all distances, in one tensor on the device.

Between two passes of the same shape nothing differs but the token ids.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from engine.kernels.batches import Batch, make_batch
from engine.model.decoder import Decoder
from engine.model.foreign import Foreign
from engine.model.view import View
from engine.sweeps.distances import measure_readouts
from engine.sweeps.probe import Probe
from engine.sweeps.readout import Limits, Readout
from engine.sweeps.relay import relay
from engine.sweeps.sweep import sweep
from engine.text.knockouts import Knockouts

GPU_LIMITS = Limits(rows=1 << 12, pattern_cells=1 << 24, joint_cells=1 << 22, buffered_cells=1 << 26)
"""A GPU wants many rows at once: it has no caches to keep them in, and idles in small products."""

CPU_LIMITS = Limits()
CACHED_CELLS, MOST_ROWS = 1 << 18, 1 << 11
"""Of a narrow residual stream a processor takes more rows at once, as long as what it makes of them stays in its
caches: there calls cost as much as arithmetic."""

Prompts = Sequence[Sequence[int]]
Shape = tuple[tuple[int, ...], tuple[Knockouts, ...], tuple[int, ...], tuple[int, ...] | None, Probe]


def limits_for(decoder: View) -> Limits:
    """What a decoder's device likes to hold at once."""
    if decoder.device.type == "cuda":
        return GPU_LIMITS
    in_cache = CACHED_CELLS // decoder.hidden_size
    return replace(CPU_LIMITS, rows=min(max(CPU_LIMITS.rows, in_cache), MOST_ROWS))


@dataclass(frozen=True)
class Pass:
    """The layers of a decoder to be measured, the length of every prompt, and the knockouts of every reading."""

    decoder: View
    lengths: tuple[int, ...]
    knockouts: tuple[Knockouts, ...]
    layers: tuple[int, ...]
    of: tuple[int, ...] | None = None
    """The prompt of each reading; None where every prompt has one."""
    probe: Probe = field(default_factory=Probe)

    @property
    def shape(self) -> Shape:
        """What prompts must have in common with others to be the same pass."""
        return self.lengths, self.knockouts, self.layers, self.of, self.probe

    @property
    def num_rows(self) -> int:
        """Rows that a layer computes: one per token and one per variant."""
        return sum(self.lengths) + sum(len(knockouts.masked) for knockouts in self.knockouts)

    def batch(self, prompts: Prompts) -> Batch:
        """The prompts (token ids) on the device."""
        return make_batch(prompts, self.knockouts, self.decoder.device, of=self.of)

    @property
    def limits(self) -> Limits:
        """What the device likes to hold at once."""
        return limits_for(self.decoder)

    def readouts(self, batch: Batch, *, to_end: bool = False) -> Iterator[Readout]:
        """What the layers show, one at a time; see ``sweep`` and ``relay``."""
        how: Any = {"layers": self.layers, "to_end": to_end, "limits": self.limits, "probe": self.probe}
        if isinstance(self.decoder, Foreign):
            return relay(self.decoder, batch, **how)
        assert isinstance(self.decoder, Decoder)
        return sweep(self.decoder, batch, **how)

    def distances(self, batch: Batch) -> Float[Tensor, "l m site metric"]:
        """All distances, still on the device."""
        return self.measured(batch)[0]

    def measured(
        self,
        batch: Batch,
        *,
        to_end: bool = False,
        watch: Callable[[Iterable[Readout]], Iterable[Readout]] = iter,
    ) -> tuple[Float[Tensor, "l m site metric"], Float[Tensor, "r e"]]:
        """All distances, and the stream that leaves the last layer; see ``measure_readouts``."""
        readouts = watch(self.readouts(batch, to_end=to_end))
        of, relative = batch.query_origins.rows, self.probe.relative
        return measure_readouts(readouts, of, limits=self.limits, relative=relative)

    def first_broken_layer(self, prompts: Prompts) -> int | None:
        """The first layer with numbers that are not finite, if there is one. Waits for the device at every layer."""
        readouts = self.readouts(self.batch(prompts), to_end=True)
        return next((readout.layer for readout in readouts if not _is_finite(readout)), None)


def _is_finite(readout: Readout) -> bool:
    vectors = [readout.residual, *(vector for site in readout.sites for vector in (site.baseline, site.delta))]
    return all(bool(vector.isfinite().all()) for vector in vectors)
