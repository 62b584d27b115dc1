"""How the engine's time grows: with tokens, with layers, with the number of masked tokens, and with prompts.

One thing grows at a time, on one loaded model in its steady state. The exponent is the slope of a least-squares line
through log(time) over log(size): 1 means that twice the size takes twice the time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.calls import WARMUPS, repeated
from benchmarks.crowd import batch_call
from benchmarks.drawing import draw
from benchmarks.machine import describe_machine
from benchmarks.measure import Call, Timing, time_interleaved
from benchmarks.options import Options
from benchmarks.report import Report, Row, Table
from benchmarks.workloads import Workload, load_workload
from engine import AttentionMasker

TOKENS, LAYERS, MASKED, PROMPTS = "tokens", "layers", "masked tokens", "prompts"
LENGTHS = (8, 16, 32, 64, 128, 256, 512)
LAYERS_LENGTH, MASKED_LENGTH = 64, 256
MOST_PROMPTS, PROMPTS_LENGTH = 64, 16


@dataclass(frozen=True, kw_only=True)
class Growth:
    """Times over the sizes of what grows; ``fixed`` says what stays as it is."""

    what: str
    fixed: str
    workload: Workload
    times: dict[int, Timing]

    @property
    def sizes(self) -> list[int]:
        return list(self.times)

    @property
    def medians(self) -> list[float]:
        return [timing.median for timing in self.times.values()]

    @property
    def exponents(self) -> dict[tuple[int, int], float]:
        """(smallest, largest size) of the fit -> exponent: over all sizes, and over the larger half of them."""
        half = len(self.sizes) // 2
        return {
            (self.sizes[start], self.sizes[-1]): exponent(self.sizes[start:], self.medians[start:])
            for start in dict.fromkeys((0, half))
            if len(self.sizes) - start > 1
        }


def exponent(sizes: Sequence[float], times: Sequence[float]) -> float:
    """The slope of the least-squares line through (log size, log time)."""
    slope, _ = np.polyfit(np.log(sizes), np.log(times), 1)
    return float(slope)


def run_scaling(options: Options, *, command: str) -> Report:
    """The scaling suite: by default on Qwen3-0.6B's shape."""
    provenance = describe_machine(options.device)
    found = [growth for name in options.shapes_or("qwen3-0.6b") for growth in _grow(name, options)]
    drawing, note = draw([(g.what, g.fixed, g.sizes, g.medians) for g in found])
    return Report(
        suite="scaling",
        command=command,
        provenance=provenance,
        conditions=[
            f"dtype {options.dtype}; medians of {options.repeats} interleaved rounds after a warm-up call of each size",
            f"one masker for all, in its steady state: it has run {WARMUPS} times before",
            f"{LAYERS}: the first so many layers of the model, nothing after them is run",
            "exponents: least squares through log(time) over log(size), over the range that is stated",
            *options.warning,
        ],
        tables=[_exponent_table(found), _time_table(found)],
        rows=[row for growth in found for row in _rows(growth)],
        notes=[note],
        figures={
            f"{g.workload.name}: exponent in {g.what}, {low} to {high}": slope
            for g in found
            for (low, high), slope in g.exponents.items()
        },
        drawing=drawing,
    )


def _grow(name: str, options: Options) -> list[Growth]:
    """The growths on one model; a quick run's prompts have 16 tokens at most."""
    lengths = options.lengths_or(*LENGTHS)
    workload = load_workload(name, length=lengths[-1], device=options.device, dtype=options.dtype)
    masker = AttentionMasker(workload.model)
    repeated(_call(masker, workload.of_length(lengths[0])))()
    fixed_lengths = (LAYERS_LENGTH, MASKED_LENGTH, PROMPTS_LENGTH)
    short, middle, tiny = (workload.of_length(min(n, lengths[-1])) for n in fixed_lengths)
    calls: dict[tuple[str, str], dict[int, Call]] = {
        (TOKENS, "all layers, all tokens masked"): {n: _call(masker, workload.of_length(n)) for n in lengths},
        (LAYERS, f"{len(short.token_ids)} tokens, all masked"): {
            n: _call(masker, short, layers=range(n)) for n in _halvings(workload.num_layers)
        },
        (MASKED, f"{len(middle.token_ids)} tokens, all layers"): {
            n: _call(masker, middle, tokens=range(n)) for n in _halvings(len(middle.token_ids))
        },
        (PROMPTS, f"{len(tiny.token_ids)} tokens each, all masked, in one batch"): {
            n: batch_call(masker.decoder, [tiny.token_ids] * n) for n in _halvings(4 if options.quick else MOST_PROMPTS)
        },
    }
    return [
        Growth(what=what, fixed=fixed, workload=workload, times=_time(sizes, what, options))
        for (what, fixed), sizes in calls.items()
    ]


def _call(masker: AttentionMasker, prompt: Workload, **chosen: Any) -> Call:
    return lambda: masker.run(prompt.token_ids, **chosen)


def _time(calls: dict[int, Call], what: str, options: Options) -> dict[int, Timing]:
    named = {str(size): call for size, call in calls.items()}
    timings = time_interleaved(named, repeats=options.repeats, device=options.device, label=what)
    return {int(size): timing for size, timing in timings.items()}


def _halvings(count: int) -> list[int]:
    """1, ..., count/4, count/2, count: each about twice the one before."""
    sizes = {count >> shift for shift in range(count.bit_length())}
    return sorted(sizes)


def _exponent_table(found: list[Growth]) -> Table:
    rows = tuple(
        (g.workload.name, g.what, g.fixed, f"{low:,} to {high:,}", f"{slope:.2f}")
        for g in found
        for (low, high), slope in g.exponents.items()
    )
    return Table(title="Exponents", header=("workload", "what grows", "what stays", "range", "exponent"), rows=rows)


def _time_table(found: list[Growth]) -> Table:
    rows = tuple(
        (g.workload.name, g.what, f"{size:,}", f"{1e3 * t.median:.2f}", f"{t.spread:.0%}")
        for g in found
        for size, t in g.times.items()
    )
    return Table(title="Times", header=("workload", "what grows", "size", "median ms", "spread"), rows=rows)


def _rows(growth: Growth) -> list[Row]:
    labels = {"workload": growth.workload.name, "dtype": growth.workload.dtype}
    times = [
        Row.of("engine", f"time by {growth.what}", "s", (t.median, t.minimum, t.maximum), **labels, x=size)
        for size, t in growth.times.items()
    ]
    slopes = [
        Row.of("engine", f"exponent in {growth.what} from {low}", "1", (slope,), **labels, x=high)
        for (low, high), slope in growth.exponents.items()
    ]
    return times + slopes
