"""Parsing of words on the command line: one-line errors."""

import argparse
from typing import Any, NoReturn

from engine.files import one_line, show


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line that points to the help."""

    def print_help(self, file: Any = None) -> None:
        """The help on standard output. Raises ``ResultsError`` when that takes no text."""
        show(self.format_help(), end="")

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"mask-impact: error: {one_line(message)}; see '{self.prog} --help'\n")
