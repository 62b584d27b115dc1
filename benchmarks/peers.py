"""The same table by other libraries in the hands of a skilled user: checked equal to the engine's, then timed.

Both do what ``copies`` says. Setting up is not timed, nor is making a data frame of their numbers. A peer that is not
installed, or does not take the model, is left out by name.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec

import numpy as np

from benchmarks.calls import ENGINE, FORWARD, plain_forward, repeated
from benchmarks.compare import NAIVE_TOLERANCES, agreement, cells_of
from benchmarks.copies import PeerCall
from benchmarks.machine import describe_machine
from benchmarks.measure import TIMING_HEADER, Call, Timing, time_interleaved
from benchmarks.options import Options
from benchmarks.report import Report, Row, Table
from benchmarks.workloads import Workload, load_workload
from engine import AttentionMasker

LENGTHS = (7, 64)
COSINE_ATOL = {"float64": 1e-6, "float32": 1e-5, "bfloat16": 0.1}
"""What 1 - cos of two vectors may be off by: a few times the rounding of the dtype, and of norms in float32."""
PEERS = {"TransformerLens": "transformer-lens", "nnsight": "nnsight"}
"""Name -> distribution; ``peer_<distribution>`` is its file here."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One prompt: times of the engine, the forward and the peers that gave the engine's table."""

    workload: Workload
    timings: dict[str, Timing]
    checks: dict[str, bool]
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def ratios(self) -> dict[str, float]:
        """Each time over the engine's."""
        engine = self.timings[ENGINE].median
        return {f"{name} / {ENGINE}": t.median / engine for name, t in self.timings.items() if name != ENGINE}

    @property
    def rows(self) -> Iterator[Row]:
        labels = self.workload.labels
        for name, t in self.timings.items():
            yield Row.of(name, "time", "s", (t.median, t.minimum, t.maximum), **labels)
        for metric, ratio in self.ratios.items():
            yield Row.of(metric.removesuffix(f" / {ENGINE}"), metric, "1", (ratio,), **labels)


def run_peers(options: Options, *, command: str) -> Report:
    """The peers suite: by default Qwen3-0.6B's shape at 7 and 64 tokens."""
    provenance = describe_machine(options.device)
    found = list(_measure_all(options))
    return Report(
        suite="peers",
        command=command,
        provenance=provenance,
        conditions=[
            f"dtype {options.dtype}; medians of {options.repeats} interleaved rounds; every token masked",
            "peers: " + (", ".join(f"{name} {version(PEERS[name])}" for name in _installed()) or "none is installed"),
            "a peer runs one pass over the prompt and a copy for each token; every layer's output is reset to the "
            "baseline's, and no logits are made beyond one row; its hooks or trace are part of its time",
            *options.warning,
        ],
        tables=[_table(found)],
        rows=[row for measured in found for row in measured.rows],
        notes=[f"{m.workload.label}: {name} was left out: {why}" for m in found for name, why in m.left_out.items()],
        figures={f"{m.workload.label}: {name}": value for m in found for name, value in m.ratios.items()},
        checks={text: held for measured in found for text, held in measured.checks.items()},
    )


def _installed() -> list[str]:
    return [name for name, package in PEERS.items() if find_spec(package.replace("-", "_"))]


def _measure_all(options: Options) -> Iterator[Measured]:
    for name in options.shapes_or("qwen3-0.6b"):
        lengths = options.lengths_or(*LENGTHS)
        workload = load_workload(name, length=lengths[0], device=options.device, dtype=options.dtype)
        for length in lengths:
            yield _measure(workload.of_length(length), options)


def _measure(workload: Workload, options: Options) -> Measured:
    """Check every peer, then time those that agree; the checks are their warm-up."""
    masker = AttentionMasker(workload.model)
    peers, checks, left_out = _agreeing(workload, masker)
    own: dict[str, Call] = {ENGINE: lambda: masker.run(workload.token_ids), FORWARD: plain_forward(workload)}
    timings = time_interleaved(
        own | peers,
        repeats=options.repeats,
        device=options.device,
        warmups={ENGINE: repeated(own[ENGINE])} | {name: lambda: None for name in peers},
        label=workload.label,
    )
    return Measured(workload=workload, timings=timings, checks=checks, left_out=left_out)


def _agreeing(
    workload: Workload, masker: AttentionMasker
) -> tuple[dict[str, PeerCall], dict[str, bool], dict[str, str]]:
    """The calls of the peers that give the engine's table, the checks of all, and why any was left out."""
    calls: dict[str, PeerCall] = {}
    checks: dict[str, bool] = {}
    left_out = {name: f"pip install {PEERS[name]}" for name in PEERS if name not in _installed()}
    for name in _installed():
        try:
            call = import_module(f"benchmarks.peer_{PEERS[name].replace('-', '_')}").table_call(
                workload.model, workload.token_ids
            )
            text, agrees = _check(name, call, workload, masker)
        except Exception as error:  # whatever a foreign library raises, the others are still measured
            left_out[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            continue
        checks[text] = agrees
        if agrees:
            calls[name] = call
        else:
            left_out[name] = "its numbers are not the engine's"
    return calls, checks, left_out


def _check(name: str, call: PeerCall, workload: Workload, masker: AttentionMasker) -> tuple[str, bool]:
    run, tolerance = call(), NAIVE_TOLERANCES[workload.dtype]
    engine = cells_of(masker.run(workload.token_ids), like=run.distances)
    errors, agrees = agreement(run.distances, engine, sizes=run.sizes, tolerance=tolerance)
    cosine = float(np.nanmax(np.abs(run.distances[..., 1] - engine[..., 1])))
    text = (
        f"{workload.label}: {name} gives the engine's table, L2 within {tolerance.rtol:g} where it exceeds "
        f"{tolerance.floor:g} of the baseline vector: {errors.cells} cells of all layers, largest difference "
        f"{errors.maximum:.1e}; every cosine distance within {COSINE_ATOL[workload.dtype]:g}: {cosine:.1e}"
    )
    return text, agrees and cosine <= COSINE_ATOL[workload.dtype]


def _table(found: list[Measured]) -> Table:
    rows = tuple(
        (m.workload.label, name, *t.cells_ms, f"{t.median / m.timings[ENGINE].median:.3g}")
        for m in found
        for name, t in m.timings.items()
    )
    return Table(title="Times", header=("workload", "what", *TIMING_HEADER, f"over {ENGINE}"), rows=rows)
