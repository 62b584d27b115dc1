"""Panics of libraries that are written in Rust: they print themselves, past Python, before they become exceptions."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from engine.errors import ImpactError


@contextmanager
def panics_unsaid() -> Iterator[None]:
    """Hold back what is written on standard error; it follows at the end, unless an ``ImpactError`` tells all of it."""
    try:
        kept = os.dup(2)
    except OSError:  # the process was started without one
        yield
        return
    with tempfile.TemporaryFile() as held:
        _turn(held.fileno())
        try:
            yield
        except ImpactError:
            _flushed()
            held.truncate(0)
            raise
        finally:
            _turn(kept)
            os.close(kept)
            held.seek(0)
            while data := held.read(1 << 16):
                os.write(2, data)


def _turn(target: int) -> None:
    """Send standard error to another file from now on."""
    _flushed()
    os.dup2(target, 2)


def _flushed() -> None:
    if sys.stderr is not None and not sys.stderr.closed:
        sys.stderr.flush()
