"""How soon the command line answers: ``--help``, and the main job on the embedded model, as whole processes.

The main job cannot be faster than importing torch and transformers, so it is also given above that floor.
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.bars import COMMAND_LINE
from benchmarks.machine import describe_machine
from benchmarks.measure import TIMING_HEADER, Call, Timing, time_interleaved
from benchmarks.options import Options
from benchmarks.report import Labels, Report, Row, Table
from benchmarks.stages import STAGES

ROOT = Path(__file__).parents[1]
PROMPT = "The Eiffel Tower is in"
PYTHON, FLOOR, NEEDED = "python alone", "importing torch and transformers", "importing what the job needs"
HELP, JOB = "cli.py --help", "main job"
IMPORTS = {
    PYTHON: "pass",
    FLOOR: "import torch, transformers",
    NEEDED: "import torch, transformers, polars, numpy; transformers.Qwen3Config; transformers.AutoTokenizer",
}
ABOVE = f"time above {FLOOR}"


@dataclass(frozen=True, kw_only=True)
class Startup:
    """Times of whole processes, and of the stages within the main job."""

    processes: dict[str, Timing]
    stages: dict[str, Timing] = field(default_factory=dict)

    @property
    def above(self) -> float:
        """Seconds that the main job takes beyond its floor."""
        return self.processes[JOB].median - self.processes[FLOOR].median

    @property
    def labelled(self) -> dict[str, Timing]:
        """All of them by name."""
        return self.processes | {f"stage: {name}": timing for name, timing in self.stages.items()}


def run_startup(options: Options, *, command: str) -> Report:
    """The startup suite: the embedded model, on the CPU."""
    provenance = describe_machine("cpu")
    found = _measure(options)
    return Report(
        suite="startup",
        command=command,
        provenance=provenance,
        conditions=[
            f"{options.repeats} interleaved rounds after one warm-up of each, so that files are in the system's cache",
            f"{JOB}: python cli.py --prompt {PROMPT!r} --device cpu --output FILE.csv, float32, embedded model",
            f"{NEEDED}: {IMPORTS[NEEDED]}",
            "stages: timed within a process of their own, each after the imports of the one before; interpreter start "
            "and exit are in the whole processes alone",
            "exit: the main job ends when its work is done, the imports alone also take torch apart in memory",
            *options.warning,
        ],
        tables=[_table(found)],
        rows=_rows(found),
        figures={name: timing.median for name, timing in found.labelled.items()} | {f"{JOB}: {ABOVE}": found.above},
        judged=not options.quick,
    )


def _measure(options: Options) -> Startup:
    stages: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        table = str(Path(folder, "table.csv"))
        calls: dict[str, Call] = {name: _process("-c", code) for name, code in IMPORTS.items()}
        calls[HELP] = _process("cli.py", "--help")
        calls[JOB] = _process("cli.py", "--prompt", PROMPT, "--device", "cpu", "--output", table)
        calls["stages"] = lambda: stages.append(json.loads(_output("-m", "benchmarks.stages", table, PROMPT)))
        processes = time_interleaved(calls, repeats=options.repeats, label="startup")
    del processes["stages"]
    counted = stages[1:]  # the first was the warm-up
    return Startup(
        processes=processes,
        stages={stage: Timing(tuple(found[stage] for found in counted)) for stage in STAGES},
    )


def _process(*words: str) -> Call:
    """A run of Python in the project's folder, as a call."""
    return lambda: _output(*words)


def _output(*words: str) -> str:
    """What such a run prints; raises when it fails."""
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout


def _table(found: Startup) -> Table:
    rows = tuple((name, *timing.cells_ms) for name, timing in found.labelled.items())
    title = "Whole processes, and the stages of the main job"
    return Table(title=title, header=("what", *TIMING_HEADER), rows=rows)


def _rows(found: Startup) -> list[Row]:
    labels: Labels = {"workload": COMMAND_LINE, "dtype": "float32", "x": 0}
    times = [
        Row.of(name, "time", "s", (t.median, t.minimum, t.maximum), **labels) for name, t in found.labelled.items()
    ]
    return [*times, Row.of(JOB, ABOVE, "s", (found.above,), **labels)]
