"""Ctrl-C as a wish to stop soon, and as a command to stop now."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from engine.errors import Interrupted


@contextmanager
def stopping() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; the second raises ``Interrupted``. Elsewhere than in the main thread a
    Ctrl-C is what it always was.
    """
    stop = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise Interrupted("stopped at once; what was finished stays, and the same command goes on from there")
        stop.set()
        with suppress(OSError):  # written by hand: the signal may have come in the middle of another message
            os.write(2, b"\nmask-impact: stopping after the current pass; press Ctrl-C again to stop at once\n")

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.signal(signal.SIGINT, handle)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
