"""What a benchmark run was asked for."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings shared by the suites; None leaves a choice to the suite.

    ``naive_passes`` ends each naive run after so many forwards and extrapolates its time; None runs all of them.
    ``quick`` shrinks whatever can be shrunk, to try the program: its figures are not meant to be reported.
    """

    shapes: tuple[str, ...] | None = None
    length: int | None = None
    device: str = "cpu"
    dtype: str = "float32"
    repeats: int = 5
    naive_passes: int | None = None
    output: Path = Path(".benchmarks")
    quick: bool = False

    def shapes_or(self, *default: str) -> tuple[str, ...]:
        """The shapes asked for, else the suite's own; a quick run's own is ``tiny`` alone."""
        return self.shapes or (("tiny",) if self.quick else default)

    def length_or(self, default: int) -> int:
        """The prompt length asked for, in tokens, else the suite's own; at most 16 in a quick run."""
        return self.length or (min(default, 16) if self.quick else default)
