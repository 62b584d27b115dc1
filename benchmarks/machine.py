"""What a benchmark ran on: hardware, versions, and the two measured ceilings (read bandwidth and matrix rate)."""

import os
import platform
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from benchmarks.measure import time_once
from benchmarks.options import LeftOut

PACKAGES = ("torch", "transformers", "polars", "mask-impact")


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where, with what and when a report was made; every line of its CSV carries these."""

    device: str
    threads: int
    load: str
    versions: str
    commit: str
    date: str


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """Measured limits of the device: bytes read per second, and FLOP per second of matrix products in a dtype."""

    dtype: str
    bytes_per_second: float
    flop_per_second: float


def require_device(device: str) -> None:
    """Raises ``LeftOut`` where torch does not see the device."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise LeftOut(f"{device} was asked for, but torch {torch.__version__} sees no CUDA GPU on this machine")


def describe_machine(device: str) -> Provenance:
    """The provenance of a report that is made now."""
    return Provenance(
        device=device_name(device),
        threads=torch.get_num_threads(),
        load=_load_average(),
        versions="; ".join([f"python {platform.python_version()}", *map(_package_version, PACKAGES), *_driver(device)]),
        commit=_commit(),
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
    )


def device_name(device: str) -> str:
    """Model and cores of the processor, or the name of the GPU."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {os.cpu_count()} cores"


def _driver(device: str) -> list[str]:
    """Versions of CUDA and of the GPU's driver."""
    if not device.startswith("cuda"):
        return []
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.split()
    except (OSError, subprocess.SubprocessError):
        out = []
    return [f"cuda {torch.version.cuda}", f"driver {out[0] if out else 'unknown'}"]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def _load_average() -> str:
    """Processes that ran or waited in the last minute: far above 0 before a run, others used the machine too."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def _package_version(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return f"{name} from the source tree"


def _commit() -> str:
    """Commit of the source tree, with a plus where files differ from it; empty outside a git checkout."""
    folder = Path(__file__).parent
    command = ["git", "describe", "--always", "--exclude=*", "--dirty=+"]
    try:
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def measure_ceilings(device: str, *, dtype: str = "float32", quick: bool = False) -> Ceilings:
    """Read bandwidth and matrix rate, both the best of several runs, with the threads torch uses now."""
    num_bytes = 2**27 if quick else (2**32 if device.startswith("cuda") else 2**30)
    edge = 1024 if quick else (8192 if device.startswith("cuda") else 4096)
    return Ceilings(
        dtype=dtype,
        bytes_per_second=read_bandwidth(device, num_bytes=num_bytes),
        flop_per_second=matrix_rate(device, dtype=dtype, edge=edge),
    )


def read_bandwidth(device: str, *, num_bytes: int, repeats: int = 5) -> float:
    """Bytes per second of summing a float32 array far larger than the caches."""
    values = torch.ones(num_bytes // 4, device=device)
    return num_bytes / min(time_once(lambda: values.sum(), device=device) for _ in range(repeats))


def matrix_rate(device: str, *, dtype: str = "float32", edge: int, repeats: int = 3) -> float:
    """FLOP per second of one square product, by the fastest library, at torch's current float32 matmul precision."""
    a, b = torch.ones(2, edge, edge, device=device, dtype=getattr(torch, dtype))
    calls = [partial(product, a, b) for product in _products(device, dtype)]
    return 2 * edge**3 / min(time_once(call, device=device) for call in calls for _ in range(1 + repeats))


def _products(device: str, dtype: str) -> Iterator[Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]:
    """Ways to multiply two matrices; on the CPU torch's default is not always the faster of its two libraries."""
    yield torch.mm
    if device == "cpu" and dtype == "float32" and torch.backends.mkldnn.is_available():
        yield lambda a, b: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
