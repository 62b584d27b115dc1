"""Devices and dtypes by the names that users give them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from engine.errors import DeviceError

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


def resolve_device(name: str | torch.device) -> torch.device:
    """The device of that name: auto (the best there is), cpu, cuda, cuda:N or mps.

    Raises ``DeviceError`` when the name is none of these or the machine has no such device.
    """
    if name == "auto":
        return torch.device(best_device())
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "mps"):
        raise DeviceError(f"unknown device {str(name)!r}; choose auto, cpu, cuda, cuda:N or mps")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise DeviceError(f"device {str(name)!r} was asked for, but torch sees {count} CUDA devices; try --device cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("device 'mps' was asked for, but torch has no Metal device here; try --device cpu")
    return device


def best_device() -> str:
    """cuda where there is one, else mps, else cpu."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def resolve_dtype(name: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype of that name: float32, float64 or bfloat16. Raises ``DeviceError`` for any other."""
    dtype = DTYPES.get(str(name).removeprefix("torch."))
    if dtype is None:
        raise DeviceError(f"unknown dtype {str(name)!r}; choose float32, float64 or bfloat16")
    if dtype == torch.float64 and device.type == "mps":
        raise DeviceError("the mps device has no float64; choose --dtype float32, or --device cpu")
    return dtype


def free_host_bytes() -> int:
    """Memory that the system can give without swapping; 0 where it does not say."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return 0
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024


@contextmanager
def memory_errors(device: torch.device) -> Iterator[None]:
    """Turn running out of the device's memory into a ``DeviceError`` that says what helps."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if type(error) is RuntimeError and "can't allocate memory" not in str(error):
            raise
        raise DeviceError(
            f"{device} ran out of memory; shorten the prompt, choose fewer tokens with --tokens, "
            "a smaller --dtype, or another --device"
        ) from error
