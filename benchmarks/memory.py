"""Peak memory of one long call: the engine's table beside one plain forward, each in a process of its own.

Counted is what a call adds to what is in use right before it. Both have run on a short prompt by then, the engine often
enough to be in its steady state, so that copies of the weights that it keeps are not counted.
``python -m benchmarks.memory`` with the settings as one JSON argument is that process; it prints one JSON line.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.calls import ENGINE, FORWARD, WARMUPS, plain_forward, repeated
from benchmarks.machine import describe_machine
from benchmarks.options import Options
from benchmarks.peaks import memory_in_use, peak_memory
from benchmarks.report import Labels, Report, Row, Table
from benchmarks.workloads import Workload, load_workload
from engine import AttentionMasker

LENGTH, SHORT = 2048, 8
GIB = 2**30
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Bytes in use when the model is loaded, when the call starts, and what the call adds to that at its peak."""

    provider: str
    workload: str
    dtype: str
    length: int
    loaded_bytes: int
    base_bytes: int
    growth_bytes: int
    method: str

    @property
    def label(self) -> str:
        return f"{self.workload}, {self.length} tokens"

    @property
    def labels(self) -> Labels:
        return {"workload": self.workload, "dtype": self.dtype, "x": self.length}


def run_memory(options: Options, *, command: str) -> Report:
    """The memory suite: by default Qwen3-0.6B's shape at 2,048 tokens."""
    provenance = describe_machine(options.device)
    found = [
        _probe(name, length, provider, options)
        for name in options.shapes_or("qwen3-0.6b")
        for length in options.lengths_or(LENGTH)
        for provider in (ENGINE, FORWARD)
    ]
    return Report(
        suite="memory",
        command=command,
        provenance=provenance,
        conditions=[
            f"dtype {options.dtype}; peak above what is in use right before the call, in a fresh process each",
            f"read from {found[0].method}",
            f"before that {WARMUPS} calls on {SHORT} tokens, so that second copies of the weights are not counted",
            f"{ENGINE}: a table of every token; {FORWARD}: base model, SDPA, no cache",
            *options.warning,
        ],
        tables=[_table(found)],
        rows=[row for probe in found for row in _rows(probe)] + _ratio_rows(found),
        figures={f"{row.workload}, {row.x} tokens: {row.metric}": row.median for row in _ratio_rows(found)},
        judged=not options.quick and options.device == "cpu",
    )


def _probe(name: str, length: int, provider: str, options: Options) -> Probe:
    """Run one measurement in a fresh process."""
    settings = {
        "name": name,
        "provider": provider,
        "length": length,
        "device": options.device,
        "dtype": options.dtype,
    }
    command = [sys.executable, "-m", "benchmarks.memory", json.dumps(settings)]
    print(f"memory: {name}, {length} tokens, {provider}", file=sys.stderr, flush=True)
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return Probe(**json.loads(done.stdout.splitlines()[-1]))


def measure_here(*, name: str, provider: str, length: int, device: str, dtype: str) -> Probe:
    """Load the model, warm up, and measure one call in this process, which should be a fresh one."""
    workload = load_workload(name, length=length, device=device, dtype=dtype)
    loaded = memory_in_use(device)
    run = _engine(workload) if provider == ENGINE else lambda prompt: plain_forward(prompt)()
    short = workload.of_length(SHORT)
    repeated(lambda: run(short))()
    peak = peak_memory(lambda: run(workload), device=device)
    return Probe(
        provider=provider,
        workload=workload.name,
        dtype=dtype,
        length=length,
        loaded_bytes=loaded,
        base_bytes=peak.base_bytes,
        growth_bytes=peak.growth_bytes,
        method=peak.method,
    )


def _engine(workload: Workload) -> Callable[[Workload], object]:
    """One masker for all prompts."""
    masker = AttentionMasker(workload.model)
    return lambda prompt: masker.run(prompt.token_ids)


def _table(found: list[Probe]) -> Table:
    rows = tuple(
        (
            probe.label,
            probe.provider,
            *(f"{value / GIB:.3f}" for value in (probe.loaded_bytes, probe.base_bytes, probe.growth_bytes)),
        )
        for probe in found
    )
    header = ("workload", "what", "model loaded, GiB", "before the call, GiB", "call adds, GiB")
    return Table(title="Peak memory above the loaded model", header=header, rows=rows)


def _rows(probe: Probe) -> list[Row]:
    values = {
        "peak memory of a call": probe.growth_bytes,
        "kept after warming up": probe.base_bytes - probe.loaded_bytes,
    }
    return [Row.of(probe.provider, metric, "byte", (value,), **probe.labels) for metric, value in values.items()]


def _ratio_rows(found: list[Probe]) -> list[Row]:
    """Engine over plain forward; the probes come in pairs."""
    metric = f"{ENGINE} / {FORWARD}, peak memory"
    rows = []
    for engine, forward in zip(found[::2], found[1::2], strict=True):
        ratio = engine.growth_bytes / max(1, forward.growth_bytes)
        rows.append(Row.of(ENGINE, metric, "1", (ratio,), **engine.labels))
    return rows


if __name__ == "__main__":
    print(json.dumps(vars(measure_here(**json.loads(sys.argv[1])))))
