"""A worker in a process of its own: ``python -m engine.crews.worker_process``, started by ``processes``.

What comes in on stdin are pickled bytes: ``sys.path``, then how to make the worker and its order, then shards; None
asks it to stop. What goes out, after HELLO, are pickled pairs of a word and pickled bytes: "ready", "receipt", and
"mistake" (an ``ImpactError``) or "defect" (the text of a traceback), after which nothing more can be expected.
"""

import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import IO, TYPE_CHECKING, NoReturn

from engine.datasets.orders import Stopped
from engine.datasets.shards import Shard
from engine.errors import ImpactError

if TYPE_CHECKING:  # The libraries behind it are imported when main is ready for whatever they print.
    from engine.datasets.worker import Measured, Worker

HELLO = b"engine.crews.worker_process says hello\n"
"""What stands before it was printed by somebody else while the interpreter started."""


class Inbox:
    """What the coordinator sends, taken from the pipe at once by a thread that also ends the process with it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.worker: Worker | None = None
        self._stream = stream
        self._contents: SimpleQueue[bytes | None] = SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def take(self) -> bytes:
        """The next message; before the worker is made there is no stop among them."""
        content = self._contents.get()
        assert content is not None
        return content

    def shards(self) -> Iterator[Shard]:
        """The shards as they come, until the worker is told to stop."""
        assert self.worker is not None
        while (content := self._contents.get()) is not None and not self.worker.stop.is_set():
            yield pickle.loads(content)

    def _listen(self) -> NoReturn:
        try:
            while True:
                content = pickle.load(self._stream)
                if content is None:
                    self._stop()
                self._contents.put(content)
        finally:  # The pipe's end is the coordinator's end, whatever it died of.
            os._exit(1)

    def _stop(self) -> None:
        if self.worker is None:  # Nothing is under way; loading a model can take long.
            os._exit(0)
        self.worker.stop.set()


class Outbox:
    """The way back to the coordinator, for several threads."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._write(HELLO)

    def send(self, word: str, content: object = None) -> None:
        self._write(pickle.dumps((word, pickle.dumps(content))))

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Tell the coordinator whatever is raised in the block: it ends the run, and this process with it."""
        try:
            try:
                yield
            except ImpactError as error:
                self.send("mistake", error)
        except BaseException:
            with suppress(OSError):  # Nobody is left to tell.
                self.send("defect", traceback.format_exc())

    def _write(self, message: bytes) -> None:
        with self._lock:
            self._stream.write(message)
            self._stream.flush()


def main() -> NoReturn:
    """Work until nothing more is wanted, and end without taking apart what the system takes back faster."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # What Ctrl-C means is for the coordinator to say.
    incoming, outgoing = _own_pipes()
    outbox, inbox = Outbox(outgoing), Inbox(incoming)
    with outbox.telling():
        sys.path[:] = pickle.loads(inbox.take())
        make_worker, order = pickle.loads(inbox.take())
        inbox.worker = make_worker(order)
        outbox.send("ready")
        _work(inbox.worker, inbox.shards(), outbox)
    sys.stdout.flush()
    os._exit(0)


def _own_pipes() -> tuple[IO[bytes], IO[bytes]]:
    """The pipes that were stdin and stdout; what anybody prints from now on goes to stderr."""
    incoming, outgoing = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    return incoming, outgoing


def _work(worker: "Worker", shards: Iterator[Shard], outbox: Outbox) -> None:
    """Measure shard by shard, each while the one before it is written."""
    writing: Future[None] | None = None
    with ThreadPoolExecutor(1) as writer:
        for shard in shards:
            try:
                measured = worker.measure(shard)
            except Stopped:
                return
            if writing is not None:  # Never more than two shards' numbers in memory.
                writing.result()
            writing = writer.submit(_write, worker, measured, outbox)
            del measured


def _write(worker: "Worker", measured: "Measured", outbox: Outbox) -> None:
    with outbox.telling():
        outbox.send("receipt", worker.write(measured))


if __name__ == "__main__":
    main()
