"""What the sets suite found, as tables for readers and rows for the CSV."""

from collections.abc import Iterator, Sequence

from benchmarks.batched import SAMPLED
from benchmarks.command_sets import Commanded, CommandRuns
from benchmarks.datasets import BATCHED, DATASET, FIRST_DATASET, Beside, DatasetRun, Disk
from benchmarks.measure import TIMING_HEADER, Timing
from benchmarks.report import Labels, Row, Table

MIB = 2**20
WIDE = 0.1
"""Spread of a timing beyond which its figures mean little."""
RATIO, FIRST_RATIO = f"dataset / {BATCHED}", f"first dataset / {BATCHED}"
SHARE, SESSION_SHARE = "share of the time that is no arithmetic", "the same share, from the first shard on"
RATE, WHOLE_RATE = "rows per second", "rows per second, whole process"
BYTES, COORDINATES = "bytes per row", "bytes per row, coordinates alone"
PEAK, PEAK_RATIO = "peak memory", "peak memory / that of a tenth of the prompts"
SPEEDUP = "rows per second, two workers / one"


def beside_rows(found: Beside) -> Iterator[Row]:
    """The set on a model in memory; the ratios are of medians, with the least and most that rounds could give."""
    labels = _labels(found.label)
    for name, t in found.timings.items():
        yield Row.of(name, "time", "s", _spread(t), **labels)
    plain = found.timings[BATCHED]
    for name, metric in ((DATASET, RATIO), (FIRST_DATASET, FIRST_RATIO)):
        own = found.timings[name]
        ratios = (own.median / plain.median, own.minimum / plain.maximum, own.maximum / plain.minimum)
        yield Row.of(DATASET, metric, "1", ratios, **labels)
    for name, runs in ((DATASET, found.steady), (FIRST_DATASET, [found.first])):
        yield Row.of(name, SHARE, "1", _spread(Timing(tuple(run.share for run in runs))), **labels)
        shares = Timing(tuple(run.session_share for run in runs))
        yield Row.of(name, SESSION_SHARE, "1", _spread(shares), **labels)
    yield from _disk_rows(found.disk, labels)


def command_rows(commanded: Commanded) -> Iterator[Row]:
    """The sets through the command line."""
    for runs in commanded:
        labels = _labels(runs.label)
        yield Row.of(runs.name, "time", "s", _spread(runs.whole), **labels)
        provider = DATASET if runs is commanded.large else f"{DATASET}, {runs.name}"
        yield Row.of(provider, RATE, "1/s", _rates(runs, runs.session), **labels)
        yield Row.of(provider, WHOLE_RATE, "1/s", _rates(runs, runs.whole), **labels)
        if runs in (commanded.small, commanded.large):
            peaks = Timing(tuple(run.peak_bytes for run in runs.runs))
            yield Row.of(provider, PEAK, "byte", _spread(peaks), **labels)
    labels = _labels(commanded.large.label)
    yield Row.of(DATASET, PEAK_RATIO, "1", (commanded.memory_ratio,), **labels)
    yield Row.of(DATASET, SPEEDUP, "1", (commanded.speedup,), **labels)
    yield from _disk_rows(commanded.disk, labels)


def _labels(workload: str) -> Labels:
    return {"workload": workload, "dtype": "float32", "x": 0}


def _spread(timing: Timing) -> tuple[float, float, float]:
    return timing.median, timing.minimum, timing.maximum


def _rates(runs: CommandRuns, timing: Timing) -> tuple[float, float, float]:
    return runs.rows / timing.median, runs.rows / timing.maximum, runs.rows / timing.minimum


def _disk_rows(disk: Disk, labels: Labels) -> Iterator[Row]:
    yield Row.of(DATASET, BYTES, "byte", (disk.bytes_per_row,), **labels)
    yield Row.of(DATASET, COORDINATES, "byte", (disk.coordinate_bytes_per_row,), **labels)


def set_tables(found: Sequence[Beside], commanded: Commanded) -> list[Table]:
    """All tables of the report."""
    disks = {each.label: each.disk for each in found} | {commanded.large.label: commanded.disk}
    return [*map(_time_table, found), *map(_share_table, found), _command_table(commanded), _disk_table(disks)]


def _time_table(found: Beside) -> Table:
    plain = found.timings[BATCHED].median
    rows = tuple((name, *t.cells_ms, f"{t.median / plain:.3f}") for name, t in found.timings.items())
    return Table(title=f"Times: {found.label}", header=("what", *TIMING_HEADER, f"/ {BATCHED}"), rows=rows)


def _share_table(found: Beside) -> Table:
    """Where the time of every dataset goes."""
    header = ("what", "seconds", "before the first shard, s", "passes, s", "no arithmetic", "from the first shard on")
    named = [(FIRST_DATASET, found.first), *((DATASET, run) for run in found.steady)]
    rows = tuple((name, *_share_cells(run)) for name, run in named)
    return Table(title=f"What is no arithmetic: {found.label}", header=header, rows=rows)


def _share_cells(run: DatasetRun) -> tuple[str, ...]:
    seconds = (run.seconds, run.seconds - run.session_s, run.arithmetic_s)
    return *(f"{value:.2f}" for value in seconds), f"{run.share:.1%}", f"{run.session_share:.1%}"


def _command_table(commanded: Commanded) -> Table:
    header = ("set", "command", "process, s", "spread", "session, s", "spread", "rows/s", "whole rows/s", "peak MiB")
    rows = tuple((runs.label, runs.name, *_command_cells(runs)) for runs in commanded)
    return Table(title="Through the command line (peak: of the largest process)", header=header, rows=rows)


def _command_cells(runs: CommandRuns) -> tuple[str, ...]:
    times = [cell for t in (runs.whole, runs.session) for cell in (f"{t.median:.2f}", f"{t.spread:.0%}")]
    rates = [f"{runs.rows / t.median:,.0f}" for t in (runs.session, runs.whole)]
    return *times, *rates, f"{runs.peak_bytes / MIB:.0f}"


def _disk_table(disks: dict[str, Disk]) -> Table:
    header = ("set", "rows", "MB", "bytes a row", "coordinates, bytes a row", "their share")
    rows = tuple(
        (
            label,
            f"{disk.rows:,}",
            f"{disk.total_bytes / 1e6:.1f}",
            f"{disk.bytes_per_row:.2f}",
            f"{disk.coordinate_bytes_per_row:.2f}",
            f"{disk.coordinate_share:.0%}",
        )
        for label, disk in disks.items()
    )
    title = "Impact tables on disk (coordinates: the first part written without its distances)"
    return Table(title=title, header=header, rows=rows)


def spread_note(found: Sequence[Beside], commanded: Commanded) -> list[str]:
    """What was not repeated closely enough to be judged, by name; nothing on a machine that was left alone."""
    timings = {f"{each.label}, {name}": t for each in found for name, t in each.timings.items()}
    timings |= {f"{runs.label}, {runs.name}": runs.session for runs in commanded}
    wide = [f"{name} ({t.spread:.0%})" for name, t in timings.items() if t.spread > WIDE]
    advice = f"rounds differ by more than {WIDE:.0%}, so others used the machine; measure again: {'; '.join(wide)}"
    return [advice] if wide else []


def batch_note(found: Beside) -> str:
    """Why the plain forwards have batches of the size that they have."""
    times = ", ".join(f"{seconds:.2f} s in batches of {size}" for size, seconds in found.batch_seconds.items())
    num_tokens = sum(map(len, found.prompts))
    return (
        f"{found.label}: {num_tokens:,} tokens; one batch of the longest size in {SAMPLED}, short to long, takes the "
        f"{BATCHED} {times}; it was timed with batches of {found.batch}"
    )
