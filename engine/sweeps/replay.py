"""Passes that come again in the same shape are recorded once and replayed with new token ids.

A short pass on a GPU is thousands of small kernels, and Python asks for them more slowly than the GPU does them. A
recording asks for all at once. It is trusted only after it has given the numbers of a pass that was not recorded;
where there is none, for whatever reason, passes run as always.
"""

from collections import Counter, OrderedDict
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from engine.model.view import View
from engine.sweeps.capture import CudaRecorder, NotRecordableError, Recorder, Recording
from engine.sweeps.passes import Pass, Prompts, Shape

REPEATS = 3
"""The time that a shape comes at which it is recorded."""
MOST_ROWS = 2048
"""Longer passes keep a GPU busy without a recording."""
MOST_RECORDINGS = 32
MOST_BYTES = 1 << 30
"""Memory of all recordings together; they share one pool, which grows beyond what its largest needs with each."""
MOST_SHAPES = 1024
"""Shapes whose number of runs is remembered."""
SAME_RTOL = 1e-2
"""How close a recording must come in every cell: the same kernels, though a library may choose another for another
stream."""


@dataclass(frozen=True)
class _Recorded:
    """A recording, and where it reads the token ids."""

    recording: Recording
    token_ids: Tensor

    def __call__(self, prompts: Prompts) -> Float[np.ndarray, "l m site metric"]:
        """The distances of other prompts of the same shape."""
        self.token_ids.copy_(torch.tensor(list(chain.from_iterable(prompts)), device="cpu"))
        return self.recording().cpu().numpy()


class Replay:
    """The recordings of one decoder's passes, the most recently used.

    ``recorder`` makes them; without one, a CUDA decoder gets its device's, other passes are not recorded.
    """

    def __init__(self, recorder: Recorder | None = None) -> None:
        self._given = recorder
        self._recorder: Recorder | None = None
        self._decoder: View | None = None
        self._kept: OrderedDict[Shape, _Recorded] = OrderedDict()
        self._runs: Counter[Shape] = Counter()
        self._bytes = 0
        self.refused: dict[Shape, str] = {}
        """Why a shape is not replayed; it is not tried again."""
        self.num_replayed = 0

    def distances(self, one: Pass, prompts: Prompts) -> Float[np.ndarray, "l m site metric"] | None:
        """The distances of a pass, as ``Pass.distances`` gives them, if it is recorded; None if it has to be run.

        The shape of a pass that comes the third time is recorded on the way, for the next. Call it in inference mode.
        """
        if one.decoder is not self._decoder:
            self._turn_to(one.decoder)
        if self._recorder is None or one.num_rows > MOST_ROWS:
            return None
        if one.shape in self._kept:
            self._kept.move_to_end(one.shape)
            self.num_replayed += 1
            return self._kept[one.shape](prompts)
        if self._is_due(one.shape):
            self._record(one, prompts, self._recorder)
        return None

    def _turn_to(self, decoder: View) -> None:
        """Drop what belongs to another decoder."""
        self._forget()
        self.refused.clear()
        # Streamed weights lie elsewhere every time, and a recording is of one device.
        stays = not decoder.is_streamed and len(decoder.devices) == 1
        on_cuda = decoder.device.type == "cuda" and decoder.route == "fused" and stays
        self._recorder = self._given or (CudaRecorder(decoder.device) if on_cuda else None)
        self._decoder = decoder

    def _forget(self) -> None:
        self._kept.clear()
        self._runs.clear()
        self._bytes = 0

    def _is_due(self, shape: Shape) -> bool:
        if len(self._runs) >= MOST_SHAPES:
            self._runs.clear()
        self._runs[shape] += 1
        return self._runs[shape] >= REPEATS and shape not in self.refused

    def _record(self, one: Pass, prompts: Prompts, recorder: Recorder) -> None:
        """Record the pass and keep it, or the reason why not: a refusal costs no more than a slower pass."""
        try:
            recorded = _recorded(one, prompts, recorder)
        except RuntimeError as error:
            self.refused[one.shape] = f"{type(error).__name__}: {error}"
            return
        self._bytes += recorded.recording.num_bytes
        self._kept[one.shape] = recorded
        if len(self._kept) > MOST_RECORDINGS:
            self._kept.popitem(last=False)
        if self._bytes > MOST_BYTES:
            self._make_room(one.shape, recorded.recording.num_bytes)

    def _make_room(self, shape: Shape, num_bytes: int) -> None:
        """Memory of the pool comes back when all recordings are dropped; a shape that fills it alone stays out."""
        self._forget()
        if num_bytes > MOST_BYTES:
            self.refused[shape] = f"its recording takes {num_bytes} bytes"


def _recorded(one: Pass, prompts: Prompts, recorder: Recorder) -> _Recorded:
    """Record the pass on other token ids than the prompts', and see whether it gives the prompts' numbers."""
    batch = one.batch(prompts)
    expected = one.distances(batch).cpu().numpy()
    batch.token_ids.zero_()
    recorded = _Recorded(recorder.record(lambda: one.distances(batch)), batch.token_ids)
    if not np.allclose(recorded(prompts), expected, rtol=SAME_RTOL, atol=0.0, equal_nan=True):
        raise NotRecordableError("the recording gives other numbers than the pass")
    return recorded
