"""Ctrl-C as a wish to stop soon, and as a command to stop now; what the system asks for by SIGTERM is the same."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from engine.errors import Interrupted
from engine.interrupts import EXIT_SIGNALLED, handled


class InputStopped(KeyboardInterrupt):
    """The run is to stop, and came here while it waited for more input: it may be long until there is some."""


class Stop(threading.Event):
    """Set by the first signal, which ends whatever is ``reading``; the second raises ``Interrupted``."""

    def __init__(self) -> None:
        super().__init__()
        self.status = Interrupted.status
        self._is_reading = False

    @contextmanager
    def reading(self) -> Iterator[None]:
        """A block in which the first signal raises ``InputStopped``."""
        self._is_reading = True
        try:
            yield
        finally:
            self._is_reading = False

    def interrupted(self, what: str) -> Interrupted:
        """What is raised in the end."""
        error = Interrupted(f"{what}, and the same command goes on from there")
        error.status = self.status
        return error

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Take a signal."""
        self.status = EXIT_SIGNALLED + number
        if self.is_set():
            raise self.interrupted("stopped at once; what was finished stays")
        self.set()
        with suppress(OSError):  # written by hand: the signal may have come in the middle of another message
            os.write(2, b"\nmask-impact: stopping after the current pass; press Ctrl-C again to stop at once\n")
        if self._is_reading:
            raise InputStopped


@contextmanager
def stopping() -> Iterator[Stop]:
    """What the first Ctrl-C or SIGTERM sets. Elsewhere than in the main thread they are what they always were."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    with handled(stop.handle):
        yield stop
