"""Peak memory above the loaded model: the engine's table beside one plain forward, each in a process of its own.

``python -m benchmarks.memory`` with the settings as one JSON argument is that process; it prints one JSON line.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import describe_machine
from benchmarks.measure import memory_in_use, peak_memory
from benchmarks.options import Options
from benchmarks.report import Report, Row, Table
from benchmarks.speed import ENGINE, FORWARD, plain_forward
from benchmarks.workloads import load_workload
from engine import AttentionMasker

LENGTH = 2048
GIB = 2**30
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Peaks of one provider in bytes above the loaded model, in its first and in its second call."""

    provider: str
    workload: str
    length: int
    base_bytes: int
    first_bytes: int
    second_bytes: int
    method: str


def run_memory(options: Options, *, command: str) -> Report:
    """The memory suite: by default Qwen3-0.6B's shape at 2,048 tokens."""
    provenance = describe_machine(options.device)
    found = [_probe(name, what, options) for name in options.shapes_or("qwen3-0.6b") for what in (ENGINE, FORWARD)]
    return Report(
        suite="memory",
        command=command,
        provenance=provenance,
        conditions=[
            f"dtype {options.dtype}; peak above what is in use once the model is loaded, in a fresh process each",
            f"read from {found[0].method}",
            f"{ENGINE}: adopting the model and measuring every token; {FORWARD}: base model, SDPA, no cache",
            "a second call adds what the first left in the process, so it can stand higher than the first",
            *(["QUICK RUN: figures are not meant to be reported"] if options.quick else []),
        ],
        tables=[_table(found)],
        rows=[row for probe in found for row in _rows(probe)],
        figures=_ratios(found),
    )


def _probe(name: str, provider: str, options: Options) -> Probe:
    """Run one measurement in a fresh process."""
    settings = {
        "name": name,
        "provider": provider,
        "length": options.length_or(LENGTH),
        "device": options.device,
        "dtype": options.dtype,
    }
    command = [sys.executable, "-m", "benchmarks.memory", json.dumps(settings)]
    print(f"memory: {name}, {provider}", file=sys.stderr, flush=True)
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return Probe(**json.loads(done.stdout.splitlines()[-1]))


def measure_here(*, name: str, provider: str, length: int, device: str, dtype: str) -> Probe:
    """Load the model and measure two calls of the provider in this process, which should be a fresh one."""
    workload = load_workload(name, length=length, device=device, dtype=dtype)
    forward = plain_forward(workload)
    base = memory_in_use(device)
    masker: list[AttentionMasker] = []

    def table() -> None:
        masker.extend([] if masker else [AttentionMasker(workload.model)])
        masker[0].run(workload.token_ids)

    call = table if provider == ENGINE else forward
    first, second = (peak_memory(call, device=device, base_bytes=base) for _ in range(2))
    return Probe(
        provider=provider,
        workload=workload.name,
        length=length,
        base_bytes=base,
        first_bytes=first.growth_bytes,
        second_bytes=second.growth_bytes,
        method=first.method,
    )


def _table(found: list[Probe]) -> Table:
    rows = tuple(
        (
            f"{probe.workload}, {probe.length} tokens",
            probe.provider,
            *(f"{value / GIB:.3f}" for value in (probe.base_bytes, probe.first_bytes, probe.second_bytes)),
        )
        for probe in found
    )
    header = ("workload", "what", "in use before, GiB", "first call adds, GiB", "second call adds, GiB")
    return Table(title="Peak memory above the loaded model", header=header, rows=rows)


def _rows(probe: Probe) -> list[Row]:
    values = {"peak memory, first call": probe.first_bytes, "peak memory, second call": probe.second_bytes}
    return [
        Row.of(probe.provider, metric, "byte", (value,), workload=probe.workload, x=probe.length)
        for metric, value in values.items()
    ]


def _ratios(found: list[Probe]) -> dict[str, float]:
    """Engine over plain forward, per workload; the probes come in pairs."""
    ratios = {}
    for engine, forward in zip(found[::2], found[1::2], strict=True):
        label = f"{engine.workload}, {engine.length} tokens: {ENGINE} / {FORWARD}, peak memory"
        ratios[f"{label}, first call"] = engine.first_bytes / max(1, forward.first_bytes)
        ratios[f"{label}, second call"] = engine.second_bytes / max(1, forward.second_bytes)
    return ratios


if __name__ == "__main__":
    print(json.dumps(vars(measure_here(**json.loads(sys.argv[1])))))
