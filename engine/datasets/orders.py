"""What a worker is told, and what it answers: both can be sent to another process or machine."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from engine.questions.question import Choices


@dataclass(frozen=True, kw_only=True)
class Order:
    """All that a worker needs to know."""

    folder: str
    model: str | None
    device: str
    dtype: str
    route: str = "auto"
    stream: bool = False
    """Whether the weights stay in their files."""
    device_map: str | None = None
    check: bool = False
    """Whether the worker holds the engine against transformers on its machine before it begins."""
    layers: tuple[int, ...]
    tokens: tuple[int, ...] | None
    question: Choices = field(default_factory=Choices)
    run_id: str
    """Names the folder for unfinished files: what an orphan of another run writes goes nowhere."""
    fingerprint: str | None = None
    """Of the model, which a worker must find where it loads it."""
    form: str = "parquet"
    rows_per_pass: int | None = None
    product: str | None = None
    """The library that multiplies on a CPU, if one was chosen."""
    packed: bool = False
    """Whether weights are laid out for that library."""
    threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What became of a shard; JSON holds it."""

    shard: int
    digest: str
    """That of the shard."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """prompts, rejected, tokens, rows."""
    files: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    """Size and SHA-256 of every file, by its path in the dataset's folder."""
    measured_s: float = 0.0
    halvings: int = 0
    """How often the device ran out of memory, so that passes were halved."""


class Stopped(Exception):  # noqa: N818 - no error: somebody asked for it
    """The worker was told to stop in the middle of a shard."""
