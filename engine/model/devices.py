"""Devices and dtypes by the names that users give them."""

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec

import psutil
import torch

from engine.errors import DeviceError, OutOfMemoryError

OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")
"""How torch's allocators put it where they raise a plain RuntimeError."""
LARGEST_KEPT_BYTES = 31 << 20
"""Just below the largest freed block that glibc learns from."""
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


def resolve_device(name: str | torch.device) -> torch.device:
    """The device of that name: auto (the best there is), cpu, cuda, cuda:N or mps.

    Raises ``DeviceError`` when the name is none of these or the machine has no such device.
    """
    if name == "auto":
        return torch.device(best_device())
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = torch.device("meta")
    if device.type == "cpu" and device.index:
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


def require_map(device_map: str, device: str | torch.device, *, stream: bool) -> None:
    """Raise ``DeviceError`` for a map that is not known, cannot be made, or goes with nothing else that was asked."""
    if device_map != "auto":
        raise DeviceError(
            f"unknown device map {device_map!r}; choose auto, or hand in a model that transformers laid out as you like"
        )
    if stream or device != "auto":
        other = "stream" if stream else f"device {str(device)!r}"
        raise DeviceError(f"a device map and {other} exclude each other; leave one of them out")
    if find_spec("accelerate") is None:
        raise DeviceError("a device map needs accelerate; pip install 'mask-impact[device-map]', or leave the map out")


def free_host_bytes() -> int:
    """Memory that the system can give without swapping."""
    return psutil.virtual_memory().available


def free_bytes(device: torch.device) -> int:
    """Memory of the device that can be had now."""
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserved
    return free_host_bytes()


@contextmanager
def memory_errors(device: torch.device) -> Iterator[None]:
    """Turn running out of the device's memory into an ``OutOfMemoryError`` that says what helps."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        ran_out = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not ran_out and not any(sign in str(error) for sign in OUT_OF_MEMORY):
            raise
        raise OutOfMemoryError(
            f"{device} ran out of memory; shorten the prompt, choose fewer tokens with --tokens, "
            "a smaller --dtype, or another --device"
        ) from error


@contextmanager
def host_by_default() -> Iterator[None]:
    """Tensors that are made without a device are in the machine's memory, whatever default device the caller set."""
    if torch.get_default_device().type == "cpu":
        yield
        return
    with torch.device("cpu"):
        yield


def release_memory() -> None:
    """Give the memory of what nobody refers to any more back to the device, and to the system where glibc keeps it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim_memory()


def trim_memory() -> None:
    """Give what glibc keeps of freed memory back to the system: kept blocks of many sizes fit ever worse."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def keep_freed_memory() -> None:
    """Let this process use freed memory again instead of fetching fresh pages for every tensor.

    glibc hands every freed block above 128 KiB back to the system until it has seen a larger one freed; from then on
    it keeps blocks up to that size. One block of the largest size that it learns from, which is never touched and so
    never takes memory, makes a first run of 128 tokens almost twice as fast.
    """
    torch.empty(LARGEST_KEPT_BYTES, dtype=torch.uint8, device="cpu")
