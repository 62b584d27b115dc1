"""Commands in this process with everything they say, and ways to spoil the bytes of a file.

What a library prints of its own (a panic of polars) goes past Python's streams, so the two file descriptors are taken.
"""

import io
import os
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass

from hypothesis import strategies as st

from engine.commands import main


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit status, and what it wrote."""

    status: int
    out: str
    err: str

    @property
    def complaints(self):
        """The lines on standard error."""
        return self.err.splitlines()


def call(argv, *, stdin=b""):
    """Run the program with these words. Whatever it raises but the exit of argparse is a defect, and comes out here."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with _streams(stdin, out, err):
            try:
                status = main([*argv])
            except SystemExit as stop:
                status = stop.code
        return Ended(status, *map(_text, (out, err)))


def refused(argv, **more):
    """The one line in which the program says what is wrong."""
    ended = call(argv, **more)
    assert ended.status == 2, (argv, ended)
    assert_one_line(ended)
    return ended.err


def assert_one_line(ended):
    """An error is one line that says who speaks."""
    assert len(ended.complaints) == 1, ended
    assert ended.err.startswith("mask-impact: error: "), ended
    assert ended.err.removesuffix("\n").isprintable(), ended
    assert len(ended.err) < 2_000, ended


def survives(argv, folder, *, allowed=(0, 2), **more):
    """Run the program: it succeeds, or says in one line why not and leaves no new file in ``folder``."""
    before = _files(folder)
    ended = call(argv, **more)
    assert ended.status in allowed, (argv, ended)
    if ended.status == 2:
        assert_one_line(ended)
        assert _files(folder) <= before, argv
    return ended


def assert_brief(error):
    """An error that a person can read."""
    assert 10 < len(str(error)) < 1_500


def _files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@contextmanager
def _streams(stdin, out, err):
    """Standard streams of a process that is no terminal, by name and by number."""
    before = sys.stdin, sys.stdout, sys.stderr
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    sys.stdin = io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")
    sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(n, "w", closefd=False), write_through=True) for n in (1, 2))
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdin, sys.stdout, sys.stderr = before
        for number, handle in zip((1, 2), kept, strict=True):
            os.dup2(handle, number)
            os.close(handle)


def _text(file):
    file.seek(0)
    return file.read().decode("utf-8", "backslashreplace")


@st.composite
def spoiled(draw, sound):
    """The bytes of a file with one to four things done to them: cut off, flipped, doubled, left out, put in between."""
    data = bytearray(draw(sound) if isinstance(sound, st.SearchStrategy) else sound)
    for _ in range(draw(st.integers(1, 4))):
        first = draw(st.integers(0, len(data)))
        size = draw(st.one_of(st.integers(0, 8), st.integers(0, len(data))))
        match draw(st.sampled_from(("cut", "flip", "flip", "double", "drop", "put", "swap"))):
            case "cut":
                del data[first:]
            case "flip" if first < len(data):
                data[first] ^= 1 << draw(st.integers(0, 7))
            case "double":
                data[first:first] = data[first : first + size]
            case "drop":
                del data[first : first + size]
            case "put":
                data[first:first] = draw(st.one_of(st.binary(max_size=12), st.sampled_from(PUT)))
            case "swap":
                data[first : first + size] = data[first : first + size][::-1]
    return bytes(data)


PUT = (
    *(b"\xef\xbb\xbf", b"\xff\xfe", b"\x00", b"\r", b"\r\n", b"\n\n", b'"', b"'", b",,,", b"\xc2\x85"),
    *(b"NaN", b"inf", b"-inf", b"1e999", b"99999999999999999999", b"-1", b"null", b"true", b"[", b"{", b"[[[["),
    *(b"\xe2\x80\xa8", b"\xed\xa0\x80", b"\\ud800", b"\x1f\x8b\x08", b"PAR1", b"\xff" * 8, b"\x1b[31m"),
)  # fmt: skip
"""What files trip over."""
