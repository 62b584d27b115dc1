"""One pass over a prompt: from its token ids to the numbers of its table, in one tensor on the device.

Between two prompts of the same shape nothing differs but the token ids.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from engine.batches import Batch, make_batch
from engine.decoder import Decoder
from engine.distances import DistanceBuffer
from engine.knockouts import Knockouts
from engine.sweep import Limits, Readout, sweep

GPU_LIMITS = Limits(rows=1 << 12, pattern_cells=1 << 24)
"""A GPU wants many rows at once: it has no caches to keep them in, and idles in small products."""

Shape = tuple[int, Knockouts, tuple[int, ...]]


@dataclass(frozen=True)
class Pass:
    """The layers of a decoder to be measured, and the knockouts of a prompt."""

    decoder: Decoder
    num_tokens: int
    knockouts: Knockouts
    layers: tuple[int, ...]

    @property
    def shape(self) -> Shape:
        """What two prompts must have in common to be the same pass."""
        return self.num_tokens, self.knockouts, self.layers

    @property
    def num_rows(self) -> int:
        """Rows that a layer computes: the prompt's and one per variant."""
        return self.num_tokens + len(self.knockouts.masked)

    def batch(self, token_ids: Sequence[int]) -> Batch:
        """The prompt on the device."""
        return make_batch([token_ids], [self.knockouts], self.decoder.device)

    def readouts(self, batch: Batch, *, to_end: bool = False) -> Iterator[Readout]:
        """What the layers show, one at a time; see ``sweep``."""
        limits = GPU_LIMITS if self.decoder.device.type == "cuda" else Limits()
        return sweep(self.decoder, batch, layers=self.layers, to_end=to_end, limits=limits)

    def numbers(self, batch: Batch) -> Float[Tensor, " n"]:
        """All distances, then the sum over the stream that leaves each passed layer, still on the device."""
        buffer, sums = DistanceBuffer(batch.query_origins.rows), []
        for readout in self.readouts(batch):
            sums.append(readout.residual.sum())
            if readout.sites:
                buffer.add(readout.sites)
        return torch.cat((buffer.result().flatten(), torch.stack(sums)))

    def read(
        self, numbers: Float[np.ndarray, " n"]
    ) -> tuple[Float[np.ndarray, "l m site 2"], Float[np.ndarray, " passed"]]:
        """The numbers, taken to the host, as distances and sums."""
        count = numbers.size - max(self.layers) - 1
        sites = 2 + self.decoder.heads.num_heads
        return numbers[:count].reshape(len(self.layers), len(self.knockouts.masked), sites, 2), numbers[count:]
