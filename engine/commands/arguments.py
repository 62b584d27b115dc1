"""Parsing of words on the command line: one-line errors, and lists such as ``0-5,9``."""

import argparse
import re
from typing import NoReturn

from engine.errors import SelectionError


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line that points to the help."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"mask-impact: error: {' '.join(message.split())}; see '{self.prog} --help'\n")


def parse_indices(text: str, *, what: str) -> list[int]:
    """The sorted indices of a list such as ``0-5,9`` (ranges include both ends; no index is listed twice).

    Raises ``SelectionError`` when ``text`` is not such a list; ``what`` names the option in the message.
    """
    indices: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,9})\s*(?:-\s*([0-9]{1,9})\s*)?", part, re.ASCII)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first or last - first > 10_000_000:
            raise SelectionError(f"{what} {text!r} is not a list of indices; write it like 0-5,9 (first-last, from 0)")
        indices.update(range(first, last + 1))
    return sorted(indices)
