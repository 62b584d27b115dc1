"""Parsing of words on the command line: one-line errors, and lists such as ``0-5,9``."""

import argparse
import re
from typing import Any, NoReturn

from engine.errors import SelectionError
from engine.files import show

MOST_INDICES = 100_000


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line that points to the help."""

    def print_help(self, file: Any = None) -> None:
        """The help on standard output. Raises ``ResultsError`` when that takes no text."""
        show(self.format_help(), end="")

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"mask-impact: error: {' '.join(message.split())}; see '{self.prog} --help'\n")


def parse_indices(text: str, *, what: str) -> list[int]:
    """The sorted indices of a list such as ``0-5,9`` (ranges include both ends; no index is listed twice).

    Raises ``SelectionError`` when ``text`` is not such a list or lists more than ``MOST_INDICES``; ``what`` names the
    option in the message.
    """
    ranges = [_ends(part, text, what=what) for part in text.split(",")]
    if sum(last - first + 1 for first, last in ranges) > MOST_INDICES:
        raise SelectionError(f"{what} {text!r} lists more than {MOST_INDICES:,} indices; choose fewer")
    return sorted({index for first, last in ranges for index in range(first, last + 1)})


def _ends(part: str, text: str, *, what: str) -> tuple[int, int]:
    """The first and the last index of one ``part`` of the list ``text``."""
    match = re.fullmatch(r"\s*([0-9]{1,9})\s*(?:-\s*([0-9]{1,9})\s*)?", part, re.ASCII)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if last < first:
        raise SelectionError(f"{what} {text!r} is not a list of indices; write it like 0-5,9 (first-last, from 0)")
    return first, last
