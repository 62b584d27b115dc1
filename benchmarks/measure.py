"""Timing calls side by side, and the peak of their memory.

Calls that are compared run in turn, A B C A B C ..., so that whatever else the machine does falls on all of them.
"""

import gc
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

Call = Callable[[], object]


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

    def scaled(self, factor: float) -> "Timing":
        """The same timing extrapolated to ``factor`` times the work."""
        return Timing(tuple(factor * seconds for seconds in self.seconds))


def time_interleaved(
    calls: Mapping[str, Call], *, repeats: int, device: str = "cpu", warmups: Mapping[str, Call] | None = None
) -> dict[str, Timing]:
    """Each call once unmeasured, then ``repeats`` rounds of all calls in turn.

    ``warmups`` replaces the unmeasured run of the calls it names. Garbage is collected between calls, outside the
    measured time.
    """
    for name, call in (dict(calls) | dict(warmups or {})).items():
        _note(f"warm-up: {name}")
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats):
        for name, call in calls.items():
            _note(f"round {turn + 1} of {repeats}: {name}")
            seconds[name].append(time_once(call, device=device))
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def time_once(call: Call, *, device: str = "cpu") -> float:
    """Seconds of one call, its device work included; what it returns is dropped."""
    gc.collect()
    synchronise(device)
    start = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - start


def synchronise(device: str) -> None:
    """Wait for the work queued on a CUDA device; the CPU queues none."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


@dataclass(frozen=True, kw_only=True)
class PeakMemory:
    """Highest memory during a call above ``base_bytes``, and how it was read."""

    base_bytes: int
    growth_bytes: int
    method: str


def peak_memory(call: Call, *, device: str = "cpu", base_bytes: int | None = None) -> PeakMemory:
    """Peak of the process's resident memory (cpu) or of the allocator (cuda) during the call, above a base.

    The base is what is in use when the call starts unless ``base_bytes`` is given. Meant for a fresh process: pages
    that an earlier call freed but kept would hide new ones.
    """
    base = memory_in_use(device) if base_bytes is None else base_bytes
    method = _reset_peak(device)
    call()
    synchronise(device)
    return PeakMemory(base_bytes=base, growth_bytes=max(0, _peak_bytes(device) - base), method=method)


def memory_in_use(device: str = "cpu") -> int:
    """Bytes that the process (cpu) or the allocator (cuda) holds now, after collecting garbage."""
    gc.collect()
    if device.startswith("cuda"):
        return torch.cuda.memory_allocated(device)
    status = _linux_status("VmRSS")
    return _process_peak() if status is None else status


def _reset_peak(device: str) -> str:
    """Start a new peak where the system can, and name the counter that will be read."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        return "torch.cuda.max_memory_allocated"
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        return "VmHWM, reset before the call"
    return "ru_maxrss, the peak since the process started"


def _peak_bytes(device: str) -> int:
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    status = _linux_status("VmHWM")
    return _process_peak() if status is None else status


def _linux_status(field: str) -> int | None:
    """Bytes of one line of /proc/self/status, None where there is no such file."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


def _process_peak() -> int:
    """Peak resident bytes since the process started, where the system has no counter that can be reset."""
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
