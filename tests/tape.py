"""A recorder without a GPU: it repeats recorded operations on the memory that they were recorded with."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine.sweeps.capture import Borrowing


def places(values):
    return {value.untyped_storage()._cdata for value in tree_leaves(values) if isinstance(value, torch.Tensor)}


class Tape(TorchDispatchMode):
    """Every operation with its arguments and its result, as a graph holds kernels and addresses."""

    def __init__(self):
        super().__init__()
        self.steps = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        is_view = not func._schema.is_mutable and places(out) & places((args, kwargs))
        if not is_view:
            self.steps.append((func, args, kwargs, out))
        return out

    def play(self):
        for func, args, kwargs, out in self.steps:
            again = func(*args, **kwargs)
            if not func._schema.is_mutable:
                for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                    old.copy_(new)


class TapeRecording:
    def __init__(self, tape, result, num_bytes):
        self.tape, self.result, self.num_bytes = tape, result, num_bytes

    def __call__(self):
        self.tape.play()
        return self.result


class TapeRecorder:
    """Warms up, refuses and records as the recorder of a GPU does; ``num_bytes`` is what each is said to take."""

    def __init__(self, num_bytes=1000):
        self.num_bytes = num_bytes
        self.recorded = 0

    def record(self, run):
        run()
        with Borrowing():
            run()
        tape = Tape()
        with tape:
            result = run()
        self.recorded += 1
        return TapeRecording(tape, result, self.num_bytes)
