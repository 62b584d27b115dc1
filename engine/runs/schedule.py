"""Which prompts share a pass: sorted by length, as many at once as the device works best with and has memory for."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol, Self, TypeVar

import torch

from engine.errors import OutOfMemoryError
from engine.model.devices import free_bytes
from engine.model.view import View
from engine.runs.jobs import Job

MOST_ROWS = {"cpu": 1 << 10, "cuda": 1 << 15}
"""Rows beyond which more at once gain nothing: a processor's products are at their best with a few hundred."""
STREAMED_ROWS = 1 << 14
"""Rows of a pass that reads all weights: what reading costs is shared by many."""
CACHED_CELLS = 1 << 19
"""Of a small model a processor takes more rows at once, as long as their residual stream stays in its caches: there the
calls cost more than the arithmetic."""
SHARE_OF_FREE_MEMORY = 0.25
"""What a pass may take; the rest is for the tables, and for others on the machine."""
Key = TypeVar("Key")


class Joinable(Protocol):
    """What is measured of a job, and can be put together from its parts."""

    def joined(self, parts: Sequence[tuple[list[int], Self]]) -> Self:
        """This, the first of the parts, with the others; each comes with the places of its cases."""
        ...


Result = TypeVar("Result", bound=Joinable)
Measure = Callable[[list[Job]], list[Result]]


class Schedule:
    """Batches for one decoder, of at most ``rows`` rows (default: what suits the device) and what memory allows.

    The budget is halved whenever the device runs out of memory, and stays there.
    """

    def __init__(self, decoder: View, *, rows: int | None = None) -> None:
        most, free = rows or _most_rows(decoder), min(map(free_bytes, decoder.devices))
        self._in_memory = max(1, int(SHARE_OF_FREE_MEMORY * free / _bytes_per_row(decoder)))
        self.rows = min(most, self._in_memory)
        self._same_length, self._alone = decoder.rope_by_length, decoder.takes_one_prompt
        self.halvings = 0
        self.reads_weights = decoder.is_streamed

    def batches(self, jobs: Mapping[Key, Job]) -> Iterator[list[Key]]:
        """Keys of jobs that share a pass, longest prompts first: what does not fit shows at once."""
        batch: list[Key] = []
        rows = 0
        for key in sorted(jobs, key=lambda key: -jobs[key].num_rows):
            job = jobs[key]
            if batch and not (rows + job.num_rows <= self.rows and self._share(job, jobs[batch[-1]])):
                yield batch
                batch, rows = [], 0
            batch.append(key)
            rows += job.num_rows
        if batch:
            yield batch

    def _share(self, one: Job, other: Job) -> bool:
        """Whether two jobs can share a pass: some models take one prompt at a time, rotary tables that rescale by the
        longest prompt are for prompts of that length only, and runs of their own lie side by side only if they are the
        same.
        """
        if self._alone:
            return False
        if one.windows:
            return one.companions == other.companions
        return not self._same_length or len(one.prompt) == len(other.prompt)

    def run(self, jobs: dict[Key, Job], measure: Measure[Result]) -> dict[Key, Result]:
        """What ``measure`` makes of these jobs, in halves where all at once do not fit, down to parts of a single one.

        Raises ``OutOfMemoryError`` for a single case that does not fit.
        """
        try:
            if len(jobs) == 1:
                return {key: self._in_parts(job, measure) for key, job in jobs.items()}
            return dict(zip(jobs, measure([*jobs.values()]), strict=True))
        except OutOfMemoryError:
            if len(jobs) == 1 and not self._can_shrink(*jobs.values()):
                raise
        half = sum(job.num_rows for job in jobs.values()) // 2  # of this batch: others were planned with it
        self.rows, self.halvings = max(1, min(self.rows, half)), self.halvings + 1
        self._in_memory = max(1, min(self._in_memory, 2 * half) // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        pairs = list(jobs.items())
        middle = (len(pairs) + 1) // 2
        return self.run(dict(pairs[:middle]), measure) | (
            self.run(dict(pairs[middle:]), measure) if pairs[middle:] else {}
        )

    def _in_parts(self, job: Job, measure: Measure[Result]) -> Result:
        """What ``measure`` makes of one job, in as many parts as memory needs."""
        found = [(cases, measure([part])[0]) for cases, part in job.parts(self._in_memory)]
        return found[0][1] if len(found) == 1 else found[0][1].joined(found)

    def _can_shrink(self, job: Job) -> bool:
        """Whether smaller parts of a job would hold less: its tokens are in each of them."""
        return job.num_cases > 1 and self._in_memory > len(job.prompt)


def _most_rows(decoder: View) -> int:
    if decoder.is_streamed:
        return STREAMED_ROWS
    if decoder.device.type != "cpu":
        return MOST_ROWS.get(decoder.device.type, MOST_ROWS["cpu"])
    in_cache = CACHED_CELLS // decoder.hidden_size
    return min(max(MOST_ROWS["cpu"], in_cache), 2 * MOST_ROWS["cpu"])


def _bytes_per_row(decoder: View) -> int:
    """What a row holds while a layer is computed: the stream and what is added to it, and heads in several layouts."""
    heads = decoder.heads
    channels = 5 * decoder.hidden_size + 4 * (heads.num_heads + 2 * heads.num_kv_heads) * heads.head_dim
    return channels * decoder.dtype.itemsize
