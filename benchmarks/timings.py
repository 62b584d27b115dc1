"""The calls timed in turn on one prompt, what their times are in proportion, and the answers checked.

Shared by the suites that time the engine, on any device.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from benchmarks.agreement import check_engine
from benchmarks.calls import (
    ENGINE,
    FIRST,
    FORWARD,
    NAIVE,
    READING,
    SPLIT,
    WARMUPS,
    Calls,
    all_passes,
    default_passes,
    gpu_calls,
    table_calls,
)
from benchmarks.cost import Cost, forward_cost, table_cost
from benchmarks.machine import Ceilings
from benchmarks.measure import TIMING_HEADER, Timing, time_interleaved
from benchmarks.options import Options
from benchmarks.peaks import peak_memory
from benchmarks.report import Row, Table
from benchmarks.workloads import Workload
from engine.sweeps.replay import MOST_ROWS

PEAK = "peak memory of a call, above what is held before it"
CONDITIONS = (
    "masked tokens: all of the prompt; distances are read at the final one",
    f"{ENGINE}: steady state, a masker that has run {WARMUPS} times or more before it is timed; on a CPU it then holds "
    "a second copy of the weights, laid out for the processor, beside those of the model it was given",
    f"{FIRST}: on a new AttentionMasker each time, adoption of the loaded model included; loading is not",
    f"{FORWARD}: Hugging Face, SDPA, base model without vocabulary head, no cache, inference mode",
    f"share of read bandwidth: time of {READING} (the layers' matrices, each summed once) in the same rounds, over the "
    "call's time; share of the matrix rate: FLOP of all rows over time and measured rate",
)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One prompt's timings, the naive one extrapolated to all passes, and the checks of the engine's answers."""

    workload: Workload
    num_passes: int
    timings: dict[str, Timing]
    ceilings: Ceilings
    checks: dict[str, bool]
    peak_bytes: dict[str, int] = field(default_factory=dict)

    @property
    def ratios(self) -> dict[str, float]:
        """The figures that matter, from the medians."""
        seconds = {name: timing.median for name, timing in self.timings.items()}
        ratios = {
            f"{ENGINE} / {FORWARD}": seconds[ENGINE] / seconds[FORWARD],
            f"{FIRST} / {FORWARD}": seconds[FIRST] / seconds[FORWARD],
            f"{NAIVE} / {ENGINE}": seconds[NAIVE] / seconds[ENGINE],
        }
        if SPLIT in seconds:
            ratios[f"{SPLIT} / {FORWARD}"] = seconds[SPLIT] / seconds[FORWARD]
            ratios[f"{NAIVE} / {SPLIT}"] = seconds[NAIVE] / seconds[SPLIT]
        for name, cost in _costs(self.workload).items():
            ratios[f"{name}: share of read bandwidth"] = seconds[READING] / seconds[name]
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
        for provider, num_bytes in self.peak_bytes.items():
            yield Row.of(provider, PEAK, "GiB", (num_bytes / 2**30,), **labels)

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


def measure_on_gpu(workload: Workload, options: Options, ceilings: Ceilings) -> Measured:
    """As ``measure_times``, with what a GPU adds, and with the peak of each engine's memory beside the forward's."""
    num_passes = min(options.naive_passes or default_passes(workload), all_passes(workload))
    timed = gpu_calls(workload, naive_passes=num_passes)
    measured = _measure(workload, options, ceilings, timed, num_passes=num_passes)
    peaks = {name: peak_memory(timed.calls[name], device=options.device) for name in (*timed.steady, FORWARD)}
    checks = measured.checks | _replay_checks(workload, timed)
    if timed.split is not None:
        checks |= {f"{SPLIT}: {text}": held for text, held in check_engine(workload, timed.split).items()}
    return replace(measured, checks=checks, peak_bytes={name: peak.growth_bytes for name, peak in peaks.items()})


def _replay_checks(workload: Workload, timed: Calls) -> dict[str, bool]:
    """Whether short passes were replayed on a GPU, and if not, why."""
    if workload.model.device.type != "cuda" or 2 * len(workload.token_ids) > MOST_ROWS:
        return {}
    reasons = {name: "; ".join(masker.replay.refused.values()) for name, masker in timed.steady.items()}
    return {
        f"{workload.label}: {name} was replayed{reason and f' ({reason})'}": timed.steady[name].replay.num_replayed > 0
        for name, reason in reasons.items()
    }


def measure_times(workload: Workload, options: Options, ceilings: Ceilings) -> Measured:
    """Time the calls in turn, then check what the timed engine returns."""
    num_passes = min(options.naive_passes or default_passes(workload), all_passes(workload))
    timed = table_calls(workload, naive_passes=num_passes)
    return _measure(workload, options, ceilings, timed, num_passes=num_passes)


def _measure(workload: Workload, options: Options, ceilings: Ceilings, timed: Calls, *, num_passes: int) -> Measured:
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


def peak_tables(found: Sequence[Measured]) -> list[Table]:
    """One row a prompt and call whose memory was measured."""
    rows = [(m.workload.label, name, f"{size / 2**30:.3f}") for m in found for name, size in m.peak_bytes.items()]
    return [Table(title="Memory", header=("workload", "what", f"{PEAK}, GiB"), rows=tuple(rows))] if rows else []
