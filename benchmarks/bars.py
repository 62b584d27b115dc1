"""The figures that this program is held to, as data, and what a report says of them.

They were set for float32 on 2 CPU cores, those of the cuda suite on an H200. A bar that is missed is reported and fails
nothing: unlike a wrong answer, a slow one may be the machine's doing.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.report import Row

SHAPE = "qwen3-0.6b"
PEAKED = "small, q and k norms x 2.7"
COMMAND_LINE = "command line"
SHAPE_SET = f"{SHAPE}, 256 prompts of 4 to 64 tokens"
READ_AND_RUN = "first run / (reading the files + first run in memory)"
SELF_CHECK = "self-check"
ANALYZED = "10,000 prompts"
DEMO_SET = "demo, 50,000 prompts of 5 to 20 tokens"


@dataclass(frozen=True)
class Bar:
    """A limit on one figure, named as its row in the report is: metric, workload and x, of a provider."""

    metric: str
    workload: str
    x: int
    limit: float
    at_least: bool = False
    provider: str = "engine"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A bar beside the figure that was measured."""

    bar: Bar
    figure: float

    @property
    def met(self) -> bool:
        return self.figure >= self.bar.limit if self.bar.at_least else self.figure <= self.bar.limit

    @property
    def cells(self) -> tuple[str, ...]:
        """What was measured, the figure, the bar and whether it was met, as text."""
        bar = self.bar
        what = bar.metric if bar.provider in bar.metric else f"{bar.provider}: {bar.metric}"
        limit = f"{'>=' if bar.at_least else '<='} {bar.limit:g}"
        workload = f"{bar.workload}, {bar.x} tokens" if bar.x else bar.workload
        return workload, what, f"{self.figure:.3g}", limit, "met" if self.met else "MISSED"


def _errors() -> Iterable[Bar]:
    """On peaked attention the engine keeps three digits of every distance, and the naive way none of some."""
    for site in ("Full", "Attn", "Head"):
        for distance in ("L2", "cosine"):
            metric = f"relative error, {site} {distance}, all cells, p99"
            yield Bar(metric, PEAKED, 48, 1e-3)
            yield Bar(metric, PEAKED, 48, 1.0, at_least=True, provider="naive")


BARS: dict[str, tuple[Bar, ...]] = {
    "speed": (
        Bar("engine / plain forward", SHAPE, 7, 0.40),
        Bar("engine / plain forward", SHAPE, 64, 0.80),
        Bar("engine / plain forward", SHAPE, 512, 0.90),
        Bar("naive / engine", SHAPE, 7, 450, at_least=True),
        Bar("engine, first call / plain forward", SHAPE, 7, 1.1),
        Bar("engine: share of read bandwidth", SHAPE, 7, 0.6, at_least=True),
    ),
    "memory": (Bar("engine / plain forward, peak memory", SHAPE, 2048, 1.5),),
    "startup": (
        Bar("time", COMMAND_LINE, 0, 0.25, provider="cli.py --help"),
        Bar("time above importing torch and transformers", COMMAND_LINE, 0, 0.8, provider="main job"),
    ),
    "accuracy": tuple(_errors()),
    "sets": (
        Bar("dataset / batched forward", SHAPE_SET, 0, 0.95),
        Bar("share of the time that is no arithmetic", SHAPE_SET, 0, 0.05),
        Bar("bytes per row", SHAPE_SET, 0, 9),
        Bar("rows per second", DEMO_SET, 0, 500_000, at_least=True),
        Bar("bytes per row", DEMO_SET, 0, 9),
        Bar("peak memory / that of a tenth of the prompts", DEMO_SET, 0, 1.1),
        Bar("rows per second, two workers / one", DEMO_SET, 0, 1.8, at_least=True),
    ),
    "questions": (
        Bar("engine, knockout / plain forward with logits", SHAPE, 7, 4),
        Bar("engine, knockout / plain forward with logits", SHAPE, 64, 12),
        Bar("engine, everywhere, output / masked copies with logits", SHAPE, 16, 0.6),
        Bar("engine, everywhere, layers / masked copies", SHAPE, 16, 0.6),
        Bar("naive / engine, all queries", SHAPE, 64, 100, at_least=True),
    ),
    "stream": (
        Bar("peak memory", SHAPE, 7, 600e6, provider="streamed"),
        Bar(READ_AND_RUN, SHAPE, 7, 1.5, provider="streamed"),
    ),
    "check": (
        Bar(SELF_CHECK, SHAPE, 0, 0.7, provider="in memory"),
        Bar(SELF_CHECK, SHAPE, 0, 0.7, provider="streamed"),
    ),
    "analysis": (
        Bar("time", ANALYZED, 0, 60, provider="analyze"),
        Bar("peak memory", ANALYZED, 0, 2e9, provider="analyze"),
        Bar("time", ANALYZED, 0, 60, provider="analyze --by text"),
        Bar("peak memory", ANALYZED, 0, 2e9, provider="analyze --by text"),
    ),
    "cuda": (
        Bar("time", SHAPE, 7, 1.5e-3, provider="engine, split"),
        Bar("naive / engine, split", SHAPE, 7, 2000, at_least=True),
        Bar("engine / plain forward", SHAPE, 4096, 2.2),
        Bar("engine, split / plain forward", SHAPE, 4096, 2.2),
        Bar("share of the matrix rate, 256 prompts at once", SHAPE, 64, 0.5, at_least=True, provider="engine, split"),
    ),
}
"""Suite -> its bars."""


def judge(suite: str, figures: Iterable["Row"]) -> list[Verdict]:
    """Every bar of the suite whose figure was measured in float32."""
    found = {(f.provider, f.metric, f.workload, f.x): f.median for f in figures if f.dtype == "float32"}
    keys = {bar: (bar.provider, bar.metric, bar.workload, bar.x) for bar in BARS.get(suite, ())}
    return [Verdict(bar=bar, figure=found[key]) for bar, key in keys.items() if key in found]
