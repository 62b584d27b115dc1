"""One run at a time in a folder, and none that is led out of it."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from engine.datasets.folder import IMPACTS, UNFINISHED
from engine.datasets.manifest import MANIFEST
from engine.errors import ResultsError
from engine.files import explaining, shown

LOCK = ".lock"


def require_no_links(folder: Path, names: Iterable[str]) -> None:
    """Raise ``ResultsError`` where one of these is a link: a run would follow it, and write or remove what is there."""
    for path in (folder / name for name in names):
        if path.is_symlink():
            raise ResultsError(f"{shown(path)} is a link, which leads out of the dataset; choose another folder")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the folder, which is made if need be, for this process alone. Raises ``ResultsError`` if another does."""
    require_no_links(path, (LOCK, MANIFEST, IMPACTS, UNFINISHED))
    with explaining(path):
        path.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path / LOCK, timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise ResultsError(
                f"{shown(path)} is being written by another run; wait for it, or choose another folder"
            ) from None
    try:
        yield
    finally:
        lock.release()
