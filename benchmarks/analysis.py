"""Analysis of a large dataset: ``analyze`` and its ways across prompts, as whole processes, on 100 million rows."""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.command_sets import ROOT
from benchmarks.machine import describe_machine
from benchmarks.made_dataset import HEADS, LAYERS, LONGEST, SHORTEST, make_dataset
from benchmarks.measure import TIMING_HEADER, Timing
from benchmarks.options import LeftOut, Options
from benchmarks.report import Report, Row, Table

PROMPTS, QUICK_PROMPTS = 10_000, 20
ROUNDS = 2
"""At the most: a round reads the dataset seven times."""
WAYS: dict[str, tuple[str, ...]] = {
    "analyze": (),
    "analyze --by text": ("--by", "text"),
    "analyze --by position": ("--by", "position"),
    "analyze --by layer": ("--by", "layer"),
    "analyze --by head": ("--by", "head"),
    "analyze A A --by head": ("A", "--by", "head"),
}
CONDITIONS = (
    f"dataset: random numbers in the program's own Parquet parts (zstd), {LAYERS} layers, {HEADS} heads, prompts of "
    f"{SHORTEST} to {LONGEST} tokens, log-normal distances, texts by Zipf's law",
    "time: the whole process, imports and the report included; the files are in the system's cache",
    "peak memory: the highest resident memory of the process, read when it has ended; mapped pages of the files that "
    "are in it count, too",
)


@dataclass(frozen=True, kw_only=True)
class Analyzed:
    """One way to analyze, repeated: whole processes."""

    name: str
    timing: Timing
    peak_bytes: int


def run_analysis(options: Options, *, command: str) -> Report:
    """The analysis suite: every way in turn, so many rounds, on a dataset that is made anew and removed."""
    if sys.platform == "win32":
        raise LeftOut("the analysis suite reads the memory of a process that has ended, which Windows does not tell")
    provenance, rounds = describe_machine("cpu"), min(options.repeats, ROUNDS)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "dataset"
        num_rows = make_dataset(folder, prompts=QUICK_PROMPTS if options.quick else PROMPTS)
        size = sum(path.stat().st_size for path in (folder / "impacts").iterdir())
        found = _analyzed(folder, rounds)
    workload = f"{QUICK_PROMPTS if options.quick else PROMPTS:,} prompts"
    rows = [row for each in found for row in _rows(each, workload)]
    return Report(
        suite="analysis",
        command=command,
        provenance=provenance,
        conditions=[f"{rounds} interleaved rounds; medians", *CONDITIONS, *options.warning],
        tables=[_table(found, f"{workload}: {num_rows:,} rows, {size:,} bytes")],
        rows=rows,
        figures={f"{row.provider}: {row.metric}": row.median for row in rows},
        judged=not options.quick,
    )


def _analyzed(folder: Path, rounds: int) -> list[Analyzed]:
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    peaks = dict.fromkeys(WAYS, 0)
    for turn in range(rounds):
        for name, words in WAYS.items():
            print(f"analysis, round {turn + 1} of {rounds}: {name}", file=sys.stderr, flush=True)
            told = _launched(["analyze", str(folder), *(str(folder) if word == "A" else word for word in words)])
            seconds[name].append(told["seconds"])
            peaks[name] = max(peaks[name], int(told["peak_bytes"]))
    return [Analyzed(name=name, timing=Timing(tuple(seconds[name])), peak_bytes=peaks[name]) for name in WAYS]


def _launched(words: list[str]) -> dict[str, float]:
    """Seconds and peak bytes of the command line."""
    launch = [sys.executable, "-m", "benchmarks.launch", json.dumps({"words": words, "cores": None})]
    done = subprocess.run(launch, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    told: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return told


def _table(found: list[Analyzed], title: str) -> Table:
    rows = tuple((each.name, *each.timing.cells_ms, f"{each.peak_bytes / 2**30:.2f}") for each in found)
    return Table(title=title, header=("command", *TIMING_HEADER, "peak GiB"), rows=rows)


def _rows(each: Analyzed, workload: str) -> list[Row]:
    labels = {"workload": workload, "dtype": "float32"}
    times = (each.timing.median, each.timing.minimum, each.timing.maximum)
    return [
        Row.of(each.name, "time", "s", times, **labels, x=0),
        Row.of(each.name, "peak memory", "bytes", (each.peak_bytes,), **labels, x=0),
    ]
