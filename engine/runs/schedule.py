"""Which prompts share a pass: sorted by length, as many at once as the device works best with and has memory for."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool

from engine.errors import OutOfMemoryError
from engine.model.decoder import Decoder
from engine.model.devices import free_bytes
from engine.text.knockouts import Knockouts
from engine.text.prompts import Prompt

MOST_ROWS = {"cpu": 1 << 10, "cuda": 1 << 15}
"""Rows beyond which more at once gain nothing: a processor's products are at their best with a few hundred."""
CACHED_CELLS = 1 << 19
"""Of a small model a processor takes more rows at once, as long as their residual stream stays in its caches: there the
calls cost more than the arithmetic."""
SHARE_OF_FREE_MEMORY = 0.25
"""What a pass may take; the rest is for the tables, and for others on the machine."""
Key = TypeVar("Key")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Job:
    """A prompt that is ready to be measured; ``undefined`` are the cells without a value."""

    prompt: Prompt
    knockouts: Knockouts
    undefined: Bool[np.ndarray, "l v"]

    @property
    def num_rows(self) -> int:
        """Rows of a layer: one per token and one per variant."""
        return len(self.prompt) + len(self.knockouts.masked)


class Schedule:
    """Batches for one decoder, of at most ``rows`` rows (default: what suits the device) and what memory allows.

    The budget is halved whenever the device runs out of memory, and stays there.
    """

    def __init__(self, decoder: Decoder, *, rows: int | None = None) -> None:
        most = rows or _most_rows(decoder)
        in_memory = SHARE_OF_FREE_MEMORY * free_bytes(decoder.device) / _bytes_per_row(decoder)
        self.rows = max(1, min(most, int(in_memory)))
        self._same_length = decoder.rope_by_length
        self.halvings = 0

    def batches(self, jobs: Mapping[Key, Job]) -> Iterator[list[Key]]:
        """Keys of jobs that share a pass, longest prompts first: what does not fit shows at once."""
        batch: list[Key] = []
        rows = length = 0
        for key in sorted(jobs, key=lambda key: -jobs[key].num_rows):
            job = jobs[key]
            # Rotary tables that rescale by the longest prompt are for prompts of that length only.
            fits = rows + job.num_rows <= self.rows and (not self._same_length or len(job.prompt) == length)
            if batch and not fits:
                yield batch
                batch, rows = [], 0
            batch.append(key)
            rows, length = rows + job.num_rows, len(job.prompt)
        if batch:
            yield batch

    def run(self, jobs: dict[Key, Job], measure: Callable[[list[Job]], list[Result]]) -> dict[Key, Result]:
        """What ``measure`` makes of these jobs, in halves where all at once do not fit.

        Raises ``OutOfMemoryError`` for a single prompt that does not fit.
        """
        try:
            return dict(zip(jobs, measure(list(jobs.values())), strict=True))
        except OutOfMemoryError:
            if len(jobs) == 1:
                raise
        half = sum(job.num_rows for job in jobs.values()) // 2  # of this batch: others were planned with it
        self.rows, self.halvings = max(1, min(self.rows, half)), self.halvings + 1
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        pairs = list(jobs.items())
        middle = len(pairs) // 2
        return self.run(dict(pairs[:middle]), measure) | self.run(dict(pairs[middle:]), measure)


def _most_rows(decoder: Decoder) -> int:
    if decoder.device.type != "cpu":
        return MOST_ROWS.get(decoder.device.type, MOST_ROWS["cpu"])
    in_cache = CACHED_CELLS // decoder.embedding.shape[1]
    return min(max(MOST_ROWS["cpu"], in_cache), 2 * MOST_ROWS["cpu"])


def _bytes_per_row(decoder: Decoder) -> int:
    """What a row holds while a layer is computed: the stream and what is added to it, and heads in several layouts."""
    heads = decoder.heads
    channels = 5 * decoder.embedding.shape[1] + 4 * (heads.num_heads + 2 * heads.num_kv_heads) * heads.head_dim
    return channels * decoder.dtype.itemsize
