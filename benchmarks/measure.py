"""Timing calls side by side.

Calls that are compared run in turn, A B C A B C ..., so that whatever else the machine does falls on all of them.
"""

import gc
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import torch

Call = Callable[[], object]
TIMING_HEADER = ("median ms", "min ms", "max ms", "spread")

SHORT_S, MOST_IN_A_ROUND = 0.3, 5
"""A call shorter than this runs several times a round, so that one disturbance of the machine is not its median."""


@dataclass(frozen=True)
class Timing:
    """Wall-clock seconds of one call, repeated."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.seconds)

    @property
    def minimum(self) -> float:
        return min(self.seconds)

    @property
    def maximum(self) -> float:
        return max(self.seconds)

    @property
    def spread(self) -> float:
        """(max - min) / median: what a ratio of two medians is uncertain by."""
        return (self.maximum - self.minimum) / self.median

    @property
    def cells_ms(self) -> tuple[str, ...]:
        """Text for a table under ``TIMING_HEADER``."""
        times = (f"{1e3 * value:.2f}" for value in (self.median, self.minimum, self.maximum))
        return (*times, f"{self.spread:.0%}")

    def scaled(self, factor: float) -> "Timing":
        """The same timing extrapolated to ``factor`` times the work."""
        return Timing(tuple(factor * seconds for seconds in self.seconds))


def time_interleaved(
    calls: Mapping[str, Call],
    *,
    repeats: int,
    device: str = "cpu",
    warmups: Mapping[str, Call] | None = None,
    label: str = "",
) -> dict[str, Timing]:
    """Each call once unmeasured, then ``repeats`` rounds of all calls in turn; a short call several times a round.

    ``warmups`` replaces the unmeasured run of the calls it names. Garbage is collected between calls, outside the
    measured time. ``label`` names the lot on stderr.
    """
    for name, call in (dict(calls) | dict(warmups or {})).items():
        _note(f"{label} warm-up: {name}")
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    with _old_objects_set_aside():
        for turn in range(repeats):
            for name, call in calls.items():
                _note(f"{label} round {turn + 1} of {repeats}: {name}")
                seconds[name] += _one_turn(call, device=device)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def _one_turn(call: Call, *, device: str) -> list[float]:
    """Seconds of a call, and of more of it if it is short."""
    gc.collect()
    seconds = [time_once(call, device=device)]
    for _ in range(min(MOST_IN_A_ROUND - 1, int(SHORT_S / max(seconds[0], 1e-9)))):
        gc.collect()
        seconds.append(time_once(call, device=device))
    return seconds


@contextmanager
def _old_objects_set_aside() -> Iterator[None]:
    """Keep what exists now out of every garbage collection: loaded libraries take it a tenth of a second each time."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def time_once(call: Call, *, device: str = "cpu") -> float:
    """Seconds of one call, its device work included; what it returns is dropped."""
    synchronise(device)
    if device.startswith("cuda"):
        return _seconds_of_events(call, device)
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _seconds_of_events(call: Call, device: str) -> float:
    """From the moment the idle GPU meets the first event until it has done all that the call asked of it.

    Waits of the host within the call count: the second event is recorded when the call has returned.
    """
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3


def synchronise(device: str) -> None:
    """Wait for the work queued on a CUDA device; the CPU queues none."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def _note(text: str) -> None:
    print(text.strip(), file=sys.stderr, flush=True)
