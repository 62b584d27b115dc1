"""Weights read layer by layer beside weights in memory: peak memory, time, and whether the tables are the same bytes.

The bars are for a prompt of 7 tokens on Qwen3-0.6B's shape in float32: the worst case, where a pass computes least for
what it reads. ``--large`` adds the shape of an 8 B model, 16 GB of bfloat16, for which the disk needs room.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.bars import READ_AND_RUN
from benchmarks.checkpoints import write_checkpoint
from benchmarks.machine import describe_machine
from benchmarks.measure import Timing
from benchmarks.options import Options
from benchmarks.report import Labels, Report, Row, Table
from benchmarks.streamed_runs import Runs, read_once, run_ways
from benchmarks.workloads import SHAPES, UNTIED
from engine.kernels.products import cpu_product

IN_MEMORY, STREAMED, READ = "in memory", "streamed", "reading the files"
TIMES = ("read once", "loading", "first run", "second run", "command")
LENGTH, LARGE = 7, "qwen3-8b"
MB = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Case:
    """One checkpoint in one dtype, run both ways or streamed alone."""

    shape: str
    stored: str
    dtype: str
    num_bytes: int
    reading: Timing
    streamed: Runs
    resident: Runs | None

    @property
    def labels(self) -> Labels:
        return {"workload": self.shape, "dtype": self.dtype, "x": LENGTH}

    @property
    def name(self) -> str:
        return f"{self.shape}, {self.num_bytes / 1e9:.1f} GB of {self.stored}, in {self.dtype}"

    @property
    def is_same(self) -> bool:
        return self.resident is not None and self.resident.table == self.streamed.table

    @property
    def ratio(self) -> float | None:
        """Of a streamed run to a read of the files and the run with weights in memory, one after the other."""
        if self.resident is None:
            return None
        return self.streamed.first.median / (self.reading.median + self.resident.first.median)


def run_stream(options: Options, *, command: str) -> Report:
    """The stream suite: by default Qwen3-0.6B's shape in float32; with ``--large`` an 8 B shape as well."""
    provenance = describe_machine("cpu")
    cases: list[Case] = []
    for name in options.shapes_or("qwen3-0.6b"):
        cases += _cases(name, "float32", ["float32"], options, resident=True)
    if options.large:
        cases += _cases(LARGE, "bfloat16", ["bfloat16", "float32"], options, resident=False)
    return Report(
        suite="stream",
        command=command,
        provenance=provenance,
        conditions=[
            f"a prompt of {LENGTH} tokens and its {LENGTH - 2} likeliest next tokens, on the CPU; {options.repeats} "
            "rounds of fresh processes in turn (one round of a model that is only streamed)",
            f"{READ}: all of them once, into one buffer of 16 MiB; they lie in the system's cache, as in all runs",
            f"first run: the first in its process, after loading, by the {cpu_product()} product; before the second, "
            "weights in memory are packed",
            "command: python cli.py --model FOLDER --prompt TEXT as a whole process, with imports, a tokenizer of the "
            "model's vocabulary, summary and CSV; peak: the highest ru_maxrss of all rounds",
            *options.warning,
        ],
        tables=[_table(cases)],
        rows=[row for case in cases for row in _rows(case)],
        figures=dict(_figures(cases)),
        checks={f"{case.name}: both tables have the same digits": case.is_same for case in cases if case.resident},
        judged=not options.quick,
    )


def _cases(name: str, stored: str, dtypes: list[str], options: Options, *, resident: bool) -> Iterator[Case]:
    """Write a checkpoint, measure it, delete it."""
    with tempfile.TemporaryDirectory(prefix="mask-impact-stream-") as work:
        folder = Path(work, "model")
        text = write_checkpoint(folder, SHAPES[name], dtype=stored, tied=name not in UNTIED)
        if hasattr(os, "sync"):
            os.sync()  # what is still being written would be measured with it
        reading = read_once(folder, repeats=options.repeats if resident else 1)
        num_bytes = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        for dtype in dtypes:
            ways = [True, False] if resident else [True]
            repeats = options.repeats if resident else 1
            found = run_ways(folder, text, dtype=dtype, ways=ways, repeats=repeats, output=Path(work, "table.csv"))
            yield Case(
                shape=name,
                stored=stored,
                dtype=dtype,
                num_bytes=num_bytes,
                reading=reading,
                streamed=found[0],
                resident=found[1] if resident else None,
            )
        shutil.rmtree(folder)


def _ways(case: Case) -> dict[str, Runs]:
    return {STREAMED: case.streamed} | ({} if case.resident is None else {IN_MEMORY: case.resident})


def _table(cases: list[Case]) -> Table:
    header = (
        "checkpoint",
        "weights",
        "read once, s",
        "loading, s",
        "first run, s",
        "second, s",
        "command, s",
        "peak, MB",
    )
    rows = []
    for case in cases:
        for way, runs in _ways(case).items():
            times = (case.reading, runs.loading, runs.first, runs.second, runs.command)
            peak = f"{runs.peak_bytes / MB:,.0f}"
            rows.append((case.name, way, *(f"{timing.median:.2f}" for timing in times), peak))
    return Table(title="Medians of all rounds", header=header, rows=tuple(rows))


def _rows(case: Case) -> Iterator[Row]:
    yield _time(READ, "time", case.reading, case)
    for way, runs in _ways(case).items():
        yield _time(way, "loading", runs.loading, case)
        yield _time(way, "first run", runs.first, case)
        yield _time(way, "second run", runs.second, case)
        yield _time(way, "command", runs.command, case)
        yield Row.of(way, "peak memory", "B", (runs.peak_bytes,), **case.labels)
    if case.ratio is not None:
        yield Row.of(STREAMED, READ_AND_RUN, "1", (case.ratio,), **case.labels)


def _figures(cases: list[Case]) -> Iterator[tuple[str, float]]:
    for case in cases:
        yield from ((f"{case.shape}, {case.dtype}, {row.provider}: {row.metric}", row.median) for row in _rows(case))


def _time(provider: str, metric: str, timing: Timing, case: Case) -> Row:
    return Row.of(provider, metric, "s", (timing.median, timing.minimum, timing.maximum), **case.labels)
