"""The peak of a call's memory, above what is in use when it starts."""

import ctypes
import gc
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.measure import Call, synchronise


@dataclass(frozen=True, kw_only=True)
class PeakMemory:
    """Highest memory during a call above ``base_bytes``, and how it was read."""

    base_bytes: int
    growth_bytes: int
    method: str


def peak_memory(call: Call, *, device: str = "cpu") -> PeakMemory:
    """Peak of the process's resident memory (cpu) or of the allocator (cuda) during the call, above its start.

    Meant for a fresh process: pages that earlier calls freed but kept would hide new ones, where the C library does not
    hand them back when asked.
    """
    base = memory_in_use(device)
    method = _reset_peak(device)
    call()
    synchronise(device)
    return PeakMemory(base_bytes=base, growth_bytes=max(0, _peak_bytes(device) - base), method=method)


def memory_in_use(device: str = "cpu") -> int:
    """Bytes that the process (cpu) or the allocator (cuda) holds now, after collecting garbage."""
    gc.collect()
    if device.startswith("cuda"):
        return torch.cuda.memory_allocated(device)
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
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
