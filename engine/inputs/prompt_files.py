"""A file of prompts, or standard input, as a stream of entries: a file larger than memory is read all the same."""

import os
import stat
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, nullcontext, suppress
from pathlib import Path
from typing import IO

from engine.errors import InputError, SelectionError
from engine.files import FilePath, shown
from engine.inputs.columnar import parquet_entries, parquet_rows
from engine.inputs.entries import Entry
from engine.inputs.fields import Wanted
from engine.inputs.formats import csv_entries, json_entries, text_entries

STDIN = "-"
PARQUET = ".parquet"
READERS: dict[str, Callable[[IO[bytes], Wanted], Iterator[Entry]]] = {
    ".txt": text_entries,
    ".jsonl": json_entries,
    ".ndjson": json_entries,
    ".csv": csv_entries,
}


def open_prompts(
    path: FilePath, *, prompt_column: str | None = None, id_column: str | None = None, limit: int | None = None
) -> "PromptFile":
    """The prompts in ``path``, whose suffix says how they are written, or the lines of standard input for ``-``.

    In CSV, Parquet and JSON lines ``prompt_column`` holds the prompts (if it is not named: ``prompt``, ``text``, the
    only column, or the only one with text), ``id_column`` their ids, which are the row numbers without it. No more
    than ``limit`` rows are read. The first row is read here, unless it comes through a pipe. Raises ``InputError``
    for what cannot be read and columns that are not there, ``SelectionError`` for a limit below 1.
    """
    name = os.fsdecode(path)
    if limit is not None and (type(limit) is not int or limit < 1):
        raise SelectionError(f"a limit of {limit!r} leaves no prompts; give a whole number of rows from 1 on")
    wanted = Wanted("standard input" if name == STDIN else shown(name), prompt_column, id_column)
    return PromptFile(name, wanted, limit=limit)


class PromptFile:
    """A readable file of prompts, or standard input; iterating over it gives its entries.

    A file can be read again and again, standard input or a pipe once. ``name`` is what the user gave. An
    ``InputError`` comes during a pass where the rest of the file cannot be read.
    """

    def __init__(self, name: str, wanted: Wanted, *, limit: int | None) -> None:
        self.name = name
        self._wanted = wanted
        self._limit = limit
        self._path = Path(os.path.abspath(name))  # noqa: PTH100 - it does not follow links; the folder may change
        self._lasting = name != STDIN and _lasts(self._path, wanted)
        self._suffix = _suffix(name, wanted)
        self._length = 0  # bytes, or the rows of a Parquet file
        self._taken = False
        self._file: IO[bytes] | None = None
        self._rows = 0
        self._done = 0.0
        if name == STDIN:
            _stdin()
        if self._lasting:
            self._check()

    def __iter__(self) -> Iterator[Entry]:
        """The entries, from the first on. Raises ``InputError`` for a second pass over what can be read once."""
        if self._taken and not self._lasting:
            raise InputError(
                f"{self._wanted.name} can be read only once; save the prompts in a file to read them again"
            )
        self._taken = True
        return self._entries()

    def fraction_read(self) -> float | None:
        """How much of the file, or of what the limit allows, the latest pass has read: 0 to 1; None for a pipe."""
        if not self._lasting:
            return None
        shares = [self._done, self._rows / (self._limit or sys.maxsize)]
        if self._suffix == PARQUET:
            shares.append(self._rows / max(1, self._length))
        elif file := self._file:
            with suppress(ValueError):  # it is closed
                shares.append(file.tell() / max(1, self._length))
        return min(1.0, max(shares))

    def _entries(self) -> Iterator[Entry]:
        self._rows, self._done = 0, 0.0
        with closing(self._read(self._limit)) as entries:
            for entry in entries:
                self._rows = entry.row + 1
                yield entry
                if self._rows == self._limit:
                    break
        self._done = 1.0

    def _read(self, limit: int | None) -> Generator[Entry, None, None]:
        """The entries by the file's form; of Parquet no more than ``limit`` are decoded."""
        try:
            if self._suffix == PARQUET:
                yield from parquet_entries(str(self._path), self._wanted, limit=limit)
                return
            with nullcontext(_stdin()) if self.name == STDIN else self._path.open("rb") as self._file:
                before = _edition(self._file) if self._lasting else None
                try:
                    yield from READERS[self._suffix](self._file, self._wanted)
                finally:
                    self._done = self.fraction_read() or 0.0
                if self._lasting and _edition(self._file) != before:
                    raise InputError(f"{self._wanted.name} was changed while it was read; run the command again")
        except OSError as error:
            raise InputError(
                f"{self._wanted.name} cannot be read: {error.strerror or error}; check that it is there and readable"
            ) from error

    def _check(self) -> None:
        """Raise the ``InputError`` that reading the first row raises, or one for a file without rows."""
        with closing(self._read(1)) as entries:
            first = next(entries, None) if self._path.stat().st_size else None
        if first is None:
            raise InputError(f"{self._wanted.name} holds no prompts; give a file with at least one")
        self._length = parquet_rows(str(self._path)) if self._suffix == PARQUET else self._path.stat().st_size
        self._done = 0.0


def _suffix(name: str, wanted: Wanted) -> str:
    """How the input is written. Raises ``InputError`` for what is not known and for columns where there are none."""
    suffix = ".txt" if name == STDIN else Path(name).suffix.lower()
    if suffix not in (*READERS, PARQUET):
        known = ", ".join((*READERS, PARQUET))
        raise InputError(
            f"{wanted.name} is no prompt file by its name; end it in one of {known}, or give - to read lines"
        )
    for option, column in (("prompt", wanted.prompt_column), ("id", wanted.id_column)):
        if suffix == ".txt" and column is not None:
            raise InputError(
                f"{wanted.name} has lines and no columns; leave --{option}-column out, or give JSON lines, CSV, Parquet"
            )
    return suffix


def _edition(file: IO[bytes]) -> tuple[int, int]:
    """What tells an open file from what it becomes: size and time of the last change."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def _lasts(path: Path, wanted: Wanted) -> bool:
    """Whether ``path`` can be read more than once: a file can, a pipe cannot, and nothing else is read."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise InputError(f"{wanted.name} does not exist; check the path") from None
    except (OSError, ValueError) as error:
        raise InputError(
            f"{wanted.name} cannot be opened: {getattr(error, 'strerror', error)}; check the path"
        ) from error
    if stat.S_ISREG(mode) or (stat.S_ISFIFO(mode) and path.suffix.lower() != PARQUET):
        return stat.S_ISREG(mode)
    raise InputError(f"{wanted.name} is {'a folder' if stat.S_ISDIR(mode) else 'no file'}; give a file of prompts")


def _stdin() -> IO[bytes]:
    if sys.stdin is None or sys.stdin.closed or not hasattr(sys.stdin, "buffer"):
        raise InputError("standard input is closed; send it the prompts, one a line, or give a file")
    return sys.stdin.buffer
