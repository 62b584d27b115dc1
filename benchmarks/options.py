"""What a benchmark run was asked for."""

from dataclasses import dataclass
from pathlib import Path


class LeftOut(Exception):  # noqa: N818 - not an error of the program: a suite says why it cannot run here
    """A suite, or a device that it was asked to use, is not to be had on this machine; the text says why."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings shared by the suites; None leaves a choice to the suite.

    ``naive_passes`` ends each naive run after so many forwards and extrapolates its time; None lets the prompt's length
    decide. ``every_suite`` is True when all suites run, so that the long prompts are not left out. ``quick`` shrinks
    whatever can be shrunk, to try the program: its figures are not meant to be reported. ``large`` adds what takes
    minutes and tens of gigabytes of disk.
    """

    shapes: tuple[str, ...] | None = None
    lengths: tuple[int, ...] | None = None
    dtypes: tuple[str, ...] | None = None
    device: str = "cpu"
    repeats: int = 5
    naive_passes: int | None = None
    output: Path = Path(".benchmarks")
    every_suite: bool = False
    quick: bool = False
    large: bool = False

    @property
    def dtype(self) -> str:
        return self.dtypes_or("float32")[0]

    @property
    def warning(self) -> list[str]:
        """The condition that a quick run has to state."""
        return ["QUICK RUN: figures are not meant to be reported"] if self.quick else []

    def shapes_or(self, *default: str) -> tuple[str, ...]:
        """The shapes asked for, else the suite's own; a quick run's own is ``tiny`` alone."""
        return self.shapes or (("tiny",) if self.quick else default)

    def lengths_or(self, *default: int) -> tuple[int, ...]:
        """The prompt lengths asked for, in tokens, else the suite's own; at most 16 in a quick run, each once."""
        return self.lengths or tuple(dict.fromkeys(min(n, 16) if self.quick else n for n in default))

    def dtypes_or(self, *default: str) -> tuple[str, ...]:
        return self.dtypes or default
