"""What the self-check at load costs: seconds in fresh processes, in memory and streamed, beside loading without it.

Transformers' modelling code is imported before the first check of a process, and timed on its own. The second check
finds warm what the first one had to set up.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.bars import SELF_CHECK
from benchmarks.checkpoints import write_checkpoint
from benchmarks.machine import describe_machine
from benchmarks.measure import Timing
from benchmarks.options import Options
from benchmarks.report import Report, Row, Table
from benchmarks.workloads import SHAPES, UNTIED

STEPS = ("loading", "import", SELF_CHECK, "second self-check")
DTYPES = ("float32", "bfloat16")
ROOT = Path(__file__).parents[1]


def run_check(options: Options, *, command: str) -> Report:
    """The check suite: by default Qwen3-0.6B's shape."""
    provenance, rows = describe_machine("cpu"), []
    for name in options.shapes_or("qwen3-0.6b"):
        with tempfile.TemporaryDirectory(prefix="mask-impact-check-") as work:
            folder = Path(work, "model")
            write_checkpoint(folder, SHAPES[name], dtype="float32", tied=name not in UNTIED)
            rows += [*_rows(name, folder, options)]
    return Report(
        suite="check",
        command=command,
        provenance=provenance,
        conditions=[
            f"files of random float32 weights in the system's cache, on the CPU; {options.repeats} rounds of processes",
            "loading: without the check; import: transformers' modelling code of that family, once a process",
            f"{SELF_CHECK}: transformers' weights are read from the files a second time, layer by layer",
            *options.warning,
        ],
        tables=[_table(rows)],
        rows=rows,
        figures={f"{row.workload}, {row.dtype}, {row.provider}: {row.metric}": row.median for row in rows},
        judged=not options.quick,
    )


def _rows(name: str, folder: Path, options: Options) -> Iterator[Row]:
    for stream in (False, True):
        for dtype in options.dtypes_or(*DTYPES):
            print(f"check, {dtype}, {'streamed' if stream else 'in memory'}", file=sys.stderr, flush=True)
            settings = {"folder": str(folder), "dtype": dtype, "stream": stream}
            rounds = [_process(settings) for _ in range(options.repeats)]
            for step in STEPS:
                timing = Timing(tuple(told[step] for told in rounds))
                seconds = (timing.median, timing.minimum, timing.maximum)
                provider = "streamed" if stream else "in memory"
                yield Row.of(provider, step, "s", seconds, workload=name, dtype=dtype, x=0)


def _table(rows: list[Row]) -> Table:
    cases: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        cells = cases.setdefault((row.workload, row.provider, row.dtype), [])
        cells.append(f"{row.median:.3f} ({row.minimum:.3f} to {row.maximum:.3f})")
    header = ("workload", "weights", "dtype", *(f"{step}, s" for step in STEPS))
    return Table(
        title="Medians of all rounds (least to most)",
        header=header,
        rows=tuple((*case, *cells) for case, cells in cases.items()),
    )


def _process(settings: dict[str, Any]) -> dict[str, float]:
    """What a fresh process says in its last line."""
    command = [sys.executable, "-m", "benchmarks.checked", json.dumps(settings)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return dict(zip(STEPS, json.loads(done.stdout.splitlines()[-1]), strict=True))
