"""A worker's place in a crew: a process, which may have to be replaced, and the shards that it has not finished."""

import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import IO

from engine.crews.worker_process import HELLO
from engine.datasets.orders import Order
from engine.datasets.shards import Shard
from engine.datasets.worker import Worker

COMMAND = [sys.executable, "-P", "-m", "engine.crews.worker_process"]
"""With -P no module of the working directory gets in the way."""
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS", "POLARS_MAX_THREADS")
"""What libraries look at when they are imported; each would start a thread per core."""


class Seat:
    """At first empty; ``messages`` gets what the process says, and "gone" when it is no more."""

    def __init__(
        self, name: str, order: Order, make_worker: Callable[[Order], Worker], messages: "SimpleQueue[Message]"
    ) -> None:
        self.name = name
        self.shards: dict[int, Shard] = {}
        self.ready = False
        """Whether the model is loaded."""
        self.failed_starts = 0
        """Processes in a row that died before they were ready."""
        self._order = order
        self._job = pickle.dumps((make_worker, order))
        self._messages = messages
        self._process: subprocess.Popen[bytes] | None = None
        self._listener: threading.Thread | None = None

    @property
    def taken(self) -> bool:
        """Whether there is a process."""
        return self._process is not None

    def give(self, shard: Shard) -> None:
        """Hand a shard to the process, which is started if there is none."""
        if self._process is None:
            self._start()
        self.shards[shard.index] = shard
        if self.ready:
            self._send(pickle.dumps(shard))

    def begin(self) -> None:
        """The model is loaded: send the shards that were kept for it. A process that starts would not take them."""
        self.ready, self.failed_starts = True, 0
        for shard in self.shards.values():
            self._send(pickle.dumps(shard))

    def stop(self) -> None:
        """Ask the process to end after its current pass; if it has not begun there is nothing to wait for."""
        if self.ready:
            self._send(None)
        else:
            self.shards.clear()

    def kill(self) -> None:
        """End the process at once."""
        if self._process is not None:
            self._process.kill()

    def clear(self) -> str:
        """Wait for the end of the process, leave the seat empty and say how it ended."""
        if self._process is None:
            return "was not there"
        status = self._process.wait()
        if self._listener is not None:
            self._listener.join()
        for pipe in filter(None, (self._process.stdin, self._process.stdout)):
            with suppress(OSError):  # The rest of a message that was not taken is of no use now.
                pipe.close()
        self.failed_starts += not self.ready
        self.shards, self.ready, self._process, self._listener = {}, False, None, None
        return f"was killed by {_signal_name(-status)}" if status < 0 else f"ended with status {status}"

    def _start(self) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            COMMAND, stdin=pipe, stdout=pipe, env=_environment(self._order), start_new_session=True
        )
        self._listener = threading.Thread(target=self._listen, args=(self._process.stdout,), daemon=True)
        self._listener.start()
        self._send(pickle.dumps([entry or str(Path.cwd()) for entry in sys.path]))
        self._send(self._job)

    def _send(self, content: bytes | None) -> None:
        """Nothing is said of a process that died: its end is a message of its own."""
        assert self._process is not None
        assert self._process.stdin is not None
        with suppress(OSError):
            pickle.dump(content, self._process.stdin)
            self._process.stdin.flush()

    def _listen(self, stream: IO[bytes]) -> None:
        with suppress(EOFError, OSError, pickle.UnpicklingError):
            for line in stream:
                if line.endswith(HELLO):
                    break
            while True:
                self._messages.put((self, *pickle.load(stream)))
        self._messages.put((self, "gone", b""))


Message = tuple[Seat, str, bytes]


def _environment(order: Order) -> dict[str, str]:
    """This process's variables, with the way to the engine and the threads that each pool may start."""
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    threads = dict.fromkeys(THREADS, str(order.threads)) if order.threads else {}
    return {**os.environ, **threads, "PYTHONPATH": os.pathsep.join(paths)}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
