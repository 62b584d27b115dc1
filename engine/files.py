"""Files that appear complete or not at all, and the standard streams.

A file is written beside its target under a private name and renamed when it is complete, so a target holds the old
content or the new, never half of one. Whatever goes wrong is a ``ResultsError`` of one line.
"""

import errno
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Literal, TextIO

from engine.errors import ResultsError

LEFTOVER = ".mask-impact-"
_UNFINISHED: set[Path] = set()
"""Files of this process that do not have their names yet."""
FilePath = str | os.PathLike[str]
ADVICE = {
    errno.EACCES: "choose a folder in which you may write",
    errno.EROFS: "choose a folder in which you may write",
    errno.ENAMETOOLONG: "choose a shorter name",
}

LONGEST_SHOWN, LONGEST_LINE = 400, 1_600
"""Characters of a path in a message, and of a message."""


@contextmanager
def new_file(path: FilePath) -> Iterator[IO[bytes]]:
    """A file beside ``path`` that takes its place when the block succeeds, and vanishes when it does not.

    It gets the permissions that ``open()`` would give it, or those of the file it replaces; a link is followed.
    """
    with explaining(path):
        target = _target(path)
        temporary = _create_beside(target)
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if target.exists():
                shutil.copymode(target, temporary)
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        finally:
            _UNFINISHED.discard(temporary)


def discard_unfinished() -> None:
    """Remove what was begun and will not be finished, because the process ends at once."""
    for temporary in tuple(_UNFINISHED):
        with suppress(OSError):
            temporary.unlink()


def require_writable(path: FilePath) -> None:
    """Raise the ``ResultsError`` that ``new_file`` would raise; nothing is left behind, no existing file is touched."""
    with explaining(path):
        temporary = _create_beside(_target(path))
        temporary.unlink()
        _UNFINISHED.discard(temporary)


def require_readable(path: FilePath) -> None:
    """Raise ``ResultsError`` unless ``path`` is a readable file with something in it."""
    target = _target(path)
    try:
        if not target.exists():
            raise ResultsError(f"{shown(path)} does not exist; check the path")
        if not target.is_file():
            raise ResultsError(f"{shown(path)} is not a file; give the results file itself")
        with target.open("rb") as file:
            if not file.read(1):
                raise ResultsError(f"{shown(path)} is empty; give a file that holds an impact table")
    except OSError as error:
        raise ResultsError(f"{shown(path)} cannot be opened: {error.strerror}; check its permissions") from error


def write_stdout(text: str) -> None:
    """Write ``text`` to standard output as UTF-8, whatever the terminal's encoding, and flush it.

    Raises ``ResultsError`` when it is closed or takes no more; a reader that went away stays ``BrokenPipeError``.
    """
    _send(text, require_stdout(), encoding="utf-8")


def show(text: str, *, end: str = "\n", stream: Literal["stdout", "stderr"] = "stdout") -> None:
    """Print ``text`` for a person: as UTF-8 into a file or pipe, on a terminal with ``?`` for signs that it lacks.

    Raises as ``write_stdout`` does. What standard error does not take is lost: there is nowhere left to say so.
    """
    if stream == "stdout":
        target = require_stdout()
        _send(text + end, target, encoding=_encoding(target))
    elif sys.stderr is not None and not sys.stderr.closed:
        with suppress(ResultsError, BrokenPipeError):
            _send(text + end, sys.stderr, encoding=_encoding(sys.stderr))


def require_stdout() -> TextIO:
    """Standard output. Raises ``ResultsError`` where the program was started without one."""
    if sys.stdout is None or sys.stdout.closed:
        raise ResultsError("standard output is closed; leave it open, or send it to a file")
    return sys.stdout


def discard(stream: TextIO | None) -> None:
    """Send what ``stream`` still holds, and all that follows, to nowhere, so that it cannot fail again at exit."""
    if stream is not None:
        with suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - a device, not a path
            os.dup2(nowhere.fileno(), stream.fileno())


def shown(path: FilePath) -> str:
    """``path`` as an error names it; of one that is longer than any file's, beginning and end."""
    name = repr(os.fspath(path))
    return name if len(name) <= LONGEST_SHOWN else f"{name[: LONGEST_SHOWN // 2]}...{name[-LONGEST_SHOWN // 4 :]}"


def one_line(text: str) -> str:
    """``text`` as one line of signs that show: what controls a terminal, or is no text, is written as an escape.

    Of a line longer than any that the program writes of its own, beginning and end.
    """
    line = "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in " ".join(text.split()))
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE // 2]} ... {line[-LONGEST_LINE // 4 :]}"


def _encoding(stream: TextIO) -> str:
    return stream.encoding if stream.isatty() else "utf-8"


def _send(text: str, stream: TextIO, *, encoding: str) -> None:
    """Write and flush ``text`` after what ``stream`` holds already; a stream without bytes gets the text itself."""
    try:
        stream.flush()
        if hasattr(stream, "buffer"):
            stream.buffer.write(text.encode(encoding, "replace"))
        else:
            stream.write(text)
        stream.flush()
    except OSError as error:
        discard(stream)
        if isinstance(error, BrokenPipeError):
            raise
        raise ResultsError(f"standard output cannot be written: {error.strerror}; write to a file instead") from error


@contextmanager
def explaining(path: FilePath) -> Iterator[None]:
    """Turn what the system raises while ``path`` is written into a ``ResultsError``."""
    try:
        yield
    except OSError as error:
        todo = ADVICE.get(error.errno or 0, "choose another path or free some space on the disk")
        raise ResultsError(f"{shown(path)} cannot be written: {error.strerror or error}; {todo}") from error


def _target(path: FilePath) -> Path:
    """The file that ``path`` means, links followed."""
    try:
        return Path(os.path.realpath(path))
    except ValueError as error:
        raise ResultsError(f"{shown(path)} is not a path: {error}") from error


def is_leftover(path: Path) -> bool:
    """Whether a process that was killed left this file behind before it had its name."""
    return path.name.startswith(LEFTOVER) and path.suffix == ".tmp"


def _create_beside(target: Path) -> Path:
    """An empty file of a private name in the folder of ``target``; no pattern for results files matches the name."""
    if obstacle := _obstacle(target):
        raise ResultsError(f"{shown(target)} cannot be written: {obstacle}")
    temporary = target.with_name(f"{LEFTOVER}{secrets.token_hex(8)}.tmp")
    temporary.open("xb").close()
    _UNFINISHED.add(temporary)
    return temporary


def _obstacle(target: Path) -> str | None:
    """Why ``target`` cannot take a file, and what to do."""
    if not target.parent.is_dir():
        return "its folder does not exist; create the folder first"
    if target.is_dir():
        return "it is a folder; add a file name"
    if target.exists() and not target.is_file():
        return "it is not a regular file; choose another name"
    if target.exists() and not os.access(target, os.W_OK):
        return "the file is read-only; choose another name"
    return None
