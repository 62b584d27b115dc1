"""Recording what a function asks of a GPU, to be asked again without Python: CUDA graphs.

A graph repeats the same kernels on the same memory. So whatever it reads must stay where it is, and nothing may be
decided or copied by the host on the way; both are seen to here.
"""

from collections.abc import Callable
from typing import Any, Protocol
from weakref import WeakSet

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WARMUPS = 2
"""Runs before a capture: libraries choose kernels and take their memory, and tensors that are made once are made."""
HOST_READS = {
    *("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "unique_dim", "_unique2"),
    *("repeat_interleave", "_pin_memory", "pin_memory", "lift_fresh"),
}
"""Operations whose result, or the size of it, the host waits for, or that bring in the host's data."""
LOOKUPS = {"index", "index_put", "index_put_", "_index_put_impl_"}

Run = Callable[[], Tensor]


class NotRecordableError(RuntimeError):
    """The function does something that a graph cannot repeat."""


class Recording(Protocol):
    """Runs again what was recorded; the result lies in the same memory every time."""

    num_bytes: int
    """Memory that the recording took."""

    def __call__(self) -> Tensor: ...


class Recorder(Protocol):
    """Makes recordings. Raises whatever it may when it cannot."""

    def record(self, run: Run) -> Recording: ...


class Borrowing(TorchDispatchMode):
    """While it is on, holds every tensor that is read but was not made meanwhile, and refuses what no graph can repeat.

    Raises ``NotRecordableError`` before the operation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[int, Tensor] = {}
        self._made: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        given = _tensors((args, kwargs or {}))
        by_mask = name in LOOKUPS and any(tensor.dtype in (torch.bool, torch.uint8) for tensor in given)
        if name in HOST_READS or by_mask:
            raise NotRecordableError(f"{func} needs the host")
        for tensor in given:
            if _place(tensor) not in self._made:
                self.held[_place(tensor)] = tensor
        out = func(*args, **(kwargs or {}))
        made = _tensors(out)
        if len({tensor.device for tensor in (*given, *made)}) > 1:
            raise NotRecordableError(f"{func} works across devices")
        self._made |= {_place(tensor) for tensor in made} - self.held.keys()
        return out


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _place(tensor: Tensor) -> int:
    """The memory that a tensor is a view of. What was there before the mode was on cannot be taken for a later one."""
    return tensor.untyped_storage()._cdata


class CudaRecorder:
    """Captures CUDA graphs, all in one pool of memory: they run one after another, so they can share what they need
    on the way. The pool goes back to the device when the last of them is dropped.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._graphs: WeakSet[torch.cuda.CUDAGraph] = WeakSet()
        self._pool: Any = None

    def record(self, run: Run) -> Recording:
        """Warm up and capture on a stream of its own, then come back to the caller's, whatever happens."""
        with torch.cuda.device(self._device), torch.cuda.stream(torch.cuda.current_stream(self._device)):
            caller = torch.cuda.current_stream(self._device)
            self._stream.wait_stream(caller)
            with torch.cuda.stream(self._stream):
                for _ in range(WARMUPS):
                    run()
                with Borrowing():
                    run()
            caller.wait_stream(self._stream)
            return self._capture(run)

    def _capture(self, run: Run) -> Recording:
        if not self._graphs:
            self._pool = torch.cuda.graph_pool_handle()
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved(self._device)
        graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"),
            Borrowing() as borrowed,
        ):
            result = run()
        self._graphs.add(graph)
        num_bytes = torch.cuda.memory_reserved(self._device) - before
        return _Graph(graph, result, list(borrowed.held.values()), max(0, num_bytes))


class _Graph:
    """A captured graph with all memory that it reads and that it writes its result to."""

    def __init__(self, graph: torch.cuda.CUDAGraph, result: Tensor, borrowed: list[Tensor], num_bytes: int) -> None:
        self._graph, self._result, self._borrowed = graph, result, borrowed
        self.num_bytes = num_bytes

    def __call__(self) -> Tensor:
        self._graph.replay()
        return self._result
