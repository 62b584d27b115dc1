"""Memory for weights that come and go: blocks that are filled again and again, each only when nobody holds it any more.

Memory that was used before takes a file's bytes three times as fast as fresh pages do.
"""

import math
import threading
import weakref
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from queue import Empty, SimpleQueue

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from engine.model.tensors import StoredTensor, Unwanted

try:
    import resource
except ImportError:  # there is none on Windows
    resource = None  # type: ignore[assignment]

ALIGNMENT = 512
"""Bytes. torch's allocators keep to 64 in the machine's memory and to 512 on CUDA, and kernels may depend on it."""
WAIT_S = 0.01
"""Between two looks whether a block that nobody gives back is still wanted, or wanted at once."""
SECTOR_BYTES = 512
"""The unit in which the system counts what is read from disks, whatever their own is."""
LEAST_FROM_DISK = 1 / 16
"""Share of a shelf; less is the file's rim."""


class Request:
    """How much somebody wants what is being read: ahead of time, at once, or no longer."""

    def __init__(self) -> None:
        self._urgent, self._dropped = threading.Event(), threading.Event()
        self.hurry, self.drop = self._urgent.set, self._dropped.set
        self.is_urgent, self.is_dropped = self._urgent.is_set, self._dropped.is_set


class Shelf:
    """Tensors that are read together, each in the dtype that it is wanted in, and where they lie in a block."""

    def __init__(self, tensors: Mapping[str, StoredTensor], dtypes: Mapping[str, torch.dtype]) -> None:
        self.tensors = tensors
        self._places: dict[str, tuple[int, int, torch.dtype]] = {}
        self.num_bytes = 0
        for name, stored in tensors.items():
            stop = self.num_bytes + dtypes[name].itemsize * math.prod(stored.shape)
            self._places[name] = self.num_bytes, stop, dtypes[name]
            self.num_bytes = -(-stop // ALIGNMENT) * ALIGNMENT

    def views(self, block: UInt8[Tensor, " n"]) -> dict[str, Tensor]:
        """The tensors as they lie in a block."""
        places = self._places.items()
        flat = {name: block[start:stop].view(dtype) for name, (start, stop, dtype) in places}
        return {name: cells.reshape(self.tensors[name].shape) for name, cells in flat.items()}


class HostBlocks:
    """Two blocks in the machine's memory; another only where somebody waits for the next and holds on to both.

    ``reads_ahead`` says whether reading before the time pays: where files lie in the system's cache it is work for the
    processor, which computes meanwhile, and the thread that it takes from a product holds up all the others.
    """

    def __init__(self, num_bytes: int, *, count: int = 2) -> None:
        self._num_bytes, self._count, self._made = num_bytes, count, 0
        self.reads_ahead = True
        # Its put may interrupt anything, even another put: it is called when a tensor dies.
        self._free: SimpleQueue[UInt8[np.ndarray, " n"]] = SimpleQueue()

    def scope(self) -> AbstractContextManager[object]:
        """Whoever will use the tensors asks for it; the thread that reads them enters it."""
        return nullcontext()

    def filled(self, shelf: Shelf, request: Request) -> dict[str, Tensor]:
        """The tensors of a shelf. Raises ``Unwanted`` soon after the request is dropped, and as ``StoredTensor``."""
        found, before = shelf.views(self._lent(request)), _bytes_from_disk()
        for name, cells in found.items():
            shelf.tensors[name].fill(cells, unwanted=request.is_dropped)
        if before is not None:
            self.reads_ahead = (_bytes_from_disk() or 0) - before > LEAST_FROM_DISK * shelf.num_bytes
        return found

    def _lent(self, request: Request) -> UInt8[Tensor, " n"]:
        """A block, which comes back when the last tensor in it is gone."""
        block = self._next(request)
        lease = block[:]
        weakref.finalize(lease, self._take_back, block).atexit = False
        return torch.from_numpy(lease)

    def _next(self, request: Request) -> UInt8[np.ndarray, " n"]:
        while not request.is_dropped():
            may_make = self._made < self._count or request.is_urgent()
            with suppress(Empty):
                return self._free.get(block=not may_make, timeout=WAIT_S)
            if may_make:
                self._made += 1
                return aligned_bytes(self._num_bytes)
        raise Unwanted

    def _take_back(self, block: UInt8[np.ndarray, " n"]) -> None:
        if self._made > self._count:
            self._made -= 1
        else:
            self._free.put(block)


class DeviceBlocks:
    """Blocks on an accelerator, from its own allocator, which gives the same memory again and again.

    Files are read to one block in the machine's memory and copied from there, on a CUDA stream of its own, while the
    device computes. The thread that reads waits for the copies; the one that uses them never does.
    """

    reads_ahead = True

    def __init__(self, num_bytes: int, device: torch.device) -> None:
        self._device, self._on_cuda = device, device.type == "cuda"
        self._num_bytes = num_bytes
        self._copies = torch.cuda.Stream(device) if self._on_cuda else None
        self._staging: UInt8[Tensor, " n"] | None = None

    def scope(self) -> AbstractContextManager[object]:
        """The stream of the user, by whose order its memory is given out and taken back."""
        return torch.cuda.stream(torch.cuda.current_stream(self._device)) if self._on_cuda else nullcontext()

    def filled(self, shelf: Shelf, request: Request) -> dict[str, Tensor]:
        """As ``HostBlocks`` does it."""
        if self._staging is None:
            self._staging = torch.empty(self._num_bytes, dtype=torch.uint8, device="cpu", pin_memory=self._on_cuda)
        here = shelf.views(self._staging)
        there = shelf.views(torch.empty(shelf.num_bytes, dtype=torch.uint8, device=self._device))
        try:
            if self._copies is not None:  # what the user computes may still read the memory that was given out here
                self._copies.wait_stream(torch.cuda.current_stream(self._device))
            for name, cells in here.items():
                shelf.tensors[name].fill(cells, unwanted=request.is_dropped)
                with torch.cuda.stream(self._copies):
                    there[name].copy_(cells, non_blocking=self._on_cuda)
        finally:
            if self._copies is not None:
                self._copies.synchronize()
        return there


def aligned_bytes(count: int) -> UInt8[np.ndarray, " count"]:
    """Fresh memory. Other than torch, numpy asks the system for large pages, which are filled and read faster."""
    whole = np.empty(count + ALIGNMENT, dtype=np.uint8)
    skipped = -whole.ctypes.data % ALIGNMENT
    return whole[skipped : skipped + count]


def _bytes_from_disk() -> int | None:
    """What this thread has had to read from a disk so far; None where the system does not tell."""
    if resource is None or not hasattr(resource, "RUSAGE_THREAD"):
        return None
    return resource.getrusage(resource.RUSAGE_THREAD).ru_inblock * SECTOR_BYTES


Blocks = HostBlocks | DeviceBlocks


def blocks_on(device: torch.device, num_bytes: int) -> Blocks:
    """Blocks of so many bytes on the device."""
    return HostBlocks(num_bytes) if device.type == "cpu" else DeviceBlocks(num_bytes, device)
