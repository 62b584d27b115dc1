"""The four calls timed in turn on one prompt, what their times are in proportion, and the answers checked.

Shared by the suites that time the engine, on any device.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.agreement import check_engine
from benchmarks.calls import ENGINE, FIRST, FORWARD, NAIVE, WARMUPS, all_passes, default_passes, table_calls
from benchmarks.cost import Cost, forward_cost, table_cost
from benchmarks.machine import Ceilings
from benchmarks.measure import TIMING_HEADER, Timing, time_interleaved
from benchmarks.options import Options
from benchmarks.report import Row, Table
from benchmarks.workloads import Workload

CONDITIONS = (
    "masked tokens: all of the prompt; distances are read at the final one",
    f"{ENGINE}: steady state, a masker that has run {WARMUPS} times or more before it is timed; on a CPU it then holds "
    "a second copy of the weights, laid out for the processor, beside those of the model it was given",
    f"{FIRST}: on a new AttentionMasker each time, adoption of the loaded model included; loading is not",
    f"{FORWARD}: Hugging Face, SDPA, base model without vocabulary head, no cache, inference mode",
    "share of read bandwidth: bytes of the layers' weights, read once, over time and measured bandwidth; share of the "
    "matrix rate: FLOP of all rows over time and measured rate. Caches can lift the first above 1 where weights fit",
)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One prompt's timings, the naive one extrapolated to all passes, and the checks of the engine's answers."""

    workload: Workload
    num_passes: int
    timings: dict[str, Timing]
    ceilings: Ceilings
    checks: dict[str, bool]

    @property
    def ratios(self) -> dict[str, float]:
        """The figures that matter, from the medians."""
        seconds = {name: timing.median for name, timing in self.timings.items()}
        ratios = {
            f"{ENGINE} / {FORWARD}": seconds[ENGINE] / seconds[FORWARD],
            f"{FIRST} / {FORWARD}": seconds[FIRST] / seconds[FORWARD],
            f"{NAIVE} / {ENGINE}": seconds[NAIVE] / seconds[ENGINE],
        }
        for name, cost in _costs(self.workload).items():
            ratios[f"{name}: share of read bandwidth"] = cost.reading_seconds(self.ceilings) / seconds[name]
            ratios[f"{name}: share of the matrix rate"] = cost.computing_seconds(self.ceilings) / seconds[name]
        return ratios

    @property
    def rows(self) -> Iterator[Row]:
        """Times and ratios for the CSV."""
        labels = self.workload.labels
        for provider, t in self.timings.items():
            yield Row.of(provider, "time", "s", (t.median, t.minimum, t.maximum), **labels)
        for metric, value in self.ratios.items():
            yield Row.of(ENGINE if ENGINE in metric else FORWARD, metric, "1", (value,), **labels)

    @property
    def note(self) -> str:
        """How many forwards the naive way takes, and how many of them were timed."""
        total = all_passes(self.workload)
        how = f"{self.num_passes} timed and extrapolated by {total / self.num_passes:.3g}"
        layers, tokens = self.workload.num_layers, len(self.workload.token_ids)
        return (
            f"{self.workload.label}: the naive way takes {layers} x ({tokens} + 1) = {total:,} forwards; "
            f"{'all of them timed' if total == self.num_passes else how}"
        )


def measure_times(workload: Workload, options: Options, ceilings: Ceilings) -> Measured:
    """Time the four calls in turn, then check what the timed engine returns."""
    num_passes = min(options.naive_passes or default_passes(workload), all_passes(workload))
    timed = table_calls(workload, naive_passes=num_passes)
    timings = time_interleaved(
        timed.calls, repeats=options.repeats, device=options.device, warmups=timed.warmups, label=workload.label
    )
    timings[NAIVE] = timings[NAIVE].scaled(all_passes(workload) / num_passes)
    checks = check_engine(workload, timed.masker)
    return Measured(workload=workload, num_passes=num_passes, timings=timings, ceilings=ceilings, checks=checks)


def _costs(workload: Workload) -> dict[str, Cost]:
    length = len(workload.token_ids)
    return {
        ENGINE: table_cost(workload.model, length=length, num_tokens=length),
        FORWARD: forward_cost(workload.model, length=length),
    }


def ratio_tables(found: Sequence[Measured]) -> list[Table]:
    """Ratios of times, and shares of the limits: one row a prompt, one column a figure."""
    shares = [name for name in found[0].ratios if "share" in name]
    ratios = [name for name in found[0].ratios if name not in shares]
    titles = {"Ratios of the medians": ratios, "Shares of the measured limits": shares}
    return [
        Table(
            title=title,
            header=("workload", *names),
            rows=tuple((m.workload.label, *(f"{m.ratios[name]:.3g}" for name in names)) for m in found),
        )
        for title, names in titles.items()
    ]


def timing_table(found: Sequence[Measured]) -> Table:
    """One row a prompt and call, with the spread that a ratio is uncertain by."""
    rows = tuple((m.workload.label, name, *t.cells_ms) for m in found for name, t in m.timings.items())
    return Table(title="Times", header=("workload", "what", *TIMING_HEADER), rows=rows)
