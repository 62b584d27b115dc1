"""Settings of the whole process that several threads want at once: the first makes them, the last undoes them.

Each thread on its own would save what another had changed, and put that back when all are gone.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from threading import Lock


class Shared:
    """A context that any number of threads are in at once; ``setting`` makes it what it is while there are any."""

    def __init__(self, setting: Callable[[], AbstractContextManager[object]]) -> None:
        self._setting, self._turn, self._holders = setting, Lock(), 0
        self._held: AbstractContextManager[object] | None = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """While it lasts, the setting holds."""
        self._join()
        try:
            yield
        finally:
            self._part()

    def _join(self) -> None:
        with self._turn:
            if self._held is None:
                held = self._setting()
                held.__enter__()
                self._held = held
            self._holders += 1

    def _part(self) -> None:
        with self._turn:
            self._holders -= 1
            if not self._holders and self._held is not None:
                held, self._held = self._held, None
                held.__exit__(None, None, None)
