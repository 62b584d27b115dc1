"""How far a run over a set has come, and how it is told: a line that moves, plain lines, or nothing."""

import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from engine.datasets.orders import Receipt
from engine.files import show

COUNTS = ("prompts", "rejected", "tokens", "rows")
PLAIN_EVERY_S = 30.0
LIVE_EVERY_S = 0.2
TOO_LITTLE = 1e-3
"""Share of the input after which the time that is left can be told."""


@dataclass
class State:
    """What is finished; ``earlier`` is what was so before this run."""

    earlier: dict[str, int]
    counts: dict[str, int]
    fraction: float | None = None
    """Of the input, where its size is known."""
    halvings: int = 0
    measured_s: float = 0.0
    """Time in which shards were measured, over all runs and workers."""

    @classmethod
    def after(cls, receipts: Iterable[Receipt]) -> "State":
        """The state of a run that goes on after these."""
        state = cls({}, dict.fromkeys(COUNTS, 0))
        for receipt in receipts:
            state.add(receipt, None)
        state.earlier, state.halvings = dict(state.counts), 0
        return state

    def add(self, receipt: Receipt, fraction: float | None) -> None:
        """Count a finished shard, up to which ``fraction`` of the input was read."""
        for name in COUNTS:
            self.counts[name] += receipt.counts.get(name, 0)
        self.halvings += receipt.halvings
        self.measured_s += receipt.measured_s
        if fraction is not None:
            self.fraction = max(fraction, self.fraction or 0.0)


@dataclass
class Progress:
    """Tells a state on standard error: where a person watches as one line, else a line every half minute."""

    quiet: bool = False
    started: float = field(default_factory=time.perf_counter)
    _said: float = 0.0
    _said_memory: bool = False
    _width: int = 0

    def __call__(self, state: State) -> None:
        """Tell, if it is time to."""
        if self.quiet:
            return
        if state.halvings and not self._said_memory:
            self._said_memory = True
            self.say("the device ran out of memory; passes are smaller from here on")
        live = _is_watched()
        now = time.perf_counter()
        if now - self._said >= (LIVE_EVERY_S if live else PLAIN_EVERY_S) or not self._said:
            self._said = now
            self._tell(state_line(state, now - self.started), live=live)

    def say(self, text: str) -> None:
        """A message of its own, unless nothing is to be said."""
        if not self.quiet:
            self.clear()
            show(f"mask-impact: {text}", stream="stderr")

    def clear(self) -> None:
        """Take the moving line away."""
        if self._width:
            show(f"\r{' ' * self._width}\r", end="", stream="stderr")
            self._width = 0

    def _tell(self, line: str, *, live: bool) -> None:
        if not live:
            show(line, stream="stderr")
            return
        padding = " " * max(0, self._width - len(line))
        self._width = len(line)
        show(f"\r{line}{padding}", end="", stream="stderr")


def state_line(state: State, seconds: float) -> str:
    """Prompts and rows done, the rate of this run, and the time left where the size of the input is known."""
    new = {name: state.counts[name] - state.earlier[name] for name in COUNTS}
    prompts, rows = state.counts["prompts"], state.counts["rows"]
    parts = [f"{prompts:,} prompts, {rows:,} rows"]
    if state.counts["rejected"]:
        parts.append(f"{state.counts['rejected']:,} rejected")
    parts.append(f"{new['prompts'] / seconds:,.1f} prompts/s, {new['rows'] / seconds:,.0f} rows/s")
    done = (new["prompts"] + new["rejected"]) / max(1, prompts + state.counts["rejected"])
    if state.fraction is not None and state.fraction > TOO_LITTLE:
        left = seconds * (1 - state.fraction) / (state.fraction * done)
        parts.append(f"{state.fraction:.0%}, {duration(left)} left")
    return "; ".join(parts)


def duration(seconds: float) -> str:
    """A time span for people."""
    whole = int(seconds + 0.5)
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if whole >= 3600:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {whole % 60:02} s" if whole >= 60 else f"{whole} s"


def _is_watched() -> bool:
    return sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()
