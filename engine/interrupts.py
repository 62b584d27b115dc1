"""Ctrl-C, and the system's wish that a process ends: neither is lost, and neither shows a traceback.

Python raises ``KeyboardInterrupt`` wherever the main thread happens to be. Inside a callback (of a weak reference, a
``__del__``) it is dropped; in a library that is being imported it comes out as an error of another kind, or makes its
C++ abort the process; and a wait without an end misses the signal that came in just before it began.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from engine.files import discard_unfinished, show

GLANCE_S = 0.1
"""How long a wait goes on before Python looks whether a signal came."""
AGAIN_S = 0.01
"""After so long a signal that was dropped comes again: the callback that dropped it is over by then."""
SIGNALS = (signal.SIGINT, signal.SIGTERM)
INTERRUPTED = "mask-impact: interrupted; no file was left half-written"
EXIT_SIGNALLED = 128
"""What a shell adds to the number of the signal that ended a process."""


class Signals:
    """What came in while a command ran: ``number`` is that of the first signal, None if there was none."""

    def __init__(self, *, alone: bool = False) -> None:
        self._alone = alone
        self.number: int | None = None

    @property
    def status(self) -> int:
        """The exit status of a process that was told to end."""
        return EXIT_SIGNALLED + (self.number or signal.SIGINT)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Raise ``KeyboardInterrupt``, or leave at once where an import must not be broken off.

        A second wish of the system's ends the process without another word.
        """
        self.number = self.number or number
        if self._alone and _is_importing(frame):
            discard_unfinished()
            show(INTERRUPTED, stream="stderr")
            os._exit(self.status)
        if number == signal.SIGTERM:
            signal.signal(number, signal.SIG_DFL)
        raise KeyboardInterrupt


@contextmanager
def noticed(*, alone: bool = False) -> Iterator[Signals]:
    """See to it that Ctrl-C and SIGTERM raise ``KeyboardInterrupt`` in the block, sooner or later.

    ``alone``: the process does nothing else, and may end in the middle of an import. Within a block that notices
    signals already, it is that one's. Outside of the main thread, and where somebody else has said what a signal means
    (``nohup``, a debugger, a server), that remains.
    """
    there = getattr(signal.getsignal(signal.SIGINT), "__self__", None)
    signals = there if isinstance(there, Signals) else Signals(alone=alone)
    if signals is there or threading.current_thread() is not threading.main_thread():
        yield signals
        return
    with handled(signals.handle, only_default=True), _dropped_again():
        yield signals


@contextmanager
def handled(handle: Callable[[int, FrameType | None], Any], *, only_default: bool = False) -> Iterator[None]:
    """Let ``handle`` take the signals that end a process, those with their usual meaning alone if ``only_default``."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    usual = (signal.default_int_handler, signal.SIG_DFL)
    taken = [number for number, there in before.items() if not only_default or there in usual]
    for number in taken:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, before[number])


def wait(event: threading.Event) -> None:
    """Wait for an event for as long as it takes; a signal is noticed within ``GLANCE_S``."""
    while not event.wait(GLANCE_S):
        pass


@contextmanager
def _dropped_again() -> Iterator[None]:
    """Send the signal again whose exception Python could raise to nobody."""
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            before(unraisable)
            return
        timer = threading.Timer(AGAIN_S, _interrupt_main)
        timer.daemon = True
        timer.start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


def _interrupt_main() -> None:
    """As Ctrl-C does it: a main thread that waits for something is woken where the system can."""
    ident = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and ident is not None:
        with suppress(ProcessLookupError):
            signal.pthread_kill(ident, signal.SIGINT)
    else:
        signal.raise_signal(signal.SIGINT)
