"""How long the whole impact table takes: the engine, beside the naive way and beside one plain forward.

All run in turn in one process on the same loaded model. The masked tokens are all but the final one, so that 7 tokens
and 28 layers make the 196 forwards of the naive way.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.agreement import check_engine
from benchmarks.cost import Cost, forward_cost, table_cost
from benchmarks.machine import Ceilings, describe_machine, measure_ceilings
from benchmarks.measure import Timing, time_interleaved
from benchmarks.naive import run_naive
from benchmarks.options import Options
from benchmarks.report import Report, Row, Table
from benchmarks.workloads import Workload, load_workload
from engine import AttentionMasker

LENGTH = 7
ENGINE, FIRST, NAIVE, FORWARD = "engine", "engine, first call", "naive", "plain forward"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One workload's timings, the naive one extrapolated to all passes, and the checks of the engine's answers."""

    workload: Workload
    tokens: list[int]
    num_passes: int
    timings: dict[str, Timing]
    checks: dict[str, bool]

    @property
    def all_passes(self) -> int:
        return self.workload.num_layers * (len(self.tokens) + 1)


def run_speed(options: Options, *, command: str) -> Report:
    """The speed suite: by default on the demo model and on Qwen3-0.6B's shape."""
    provenance = describe_machine(options.device)
    ceilings = measure_ceilings(options.device, quick=options.quick)
    found = [_measure(name, options) for name in options.shapes_or("demo", "qwen3-0.6b")]
    return Report(
        suite="speed",
        command=command,
        provenance=provenance,
        conditions=_conditions(options, ceilings),
        tables=[_timing_table(found), _ratio_table(found, ceilings)],
        rows=[row for measured in found for row in _rows(measured, ceilings)],
        notes=[_passes_note(measured) for measured in found],
        figures={f"{m.workload.name}: {name}": value for m in found for name, value in _ratios(m, ceilings).items()},
        checks={text: held for measured in found for text, held in measured.checks.items()},
    )


def _measure(name: str, options: Options) -> Measured:
    """Time the calls on one workload, then check what they return."""
    workload = load_workload(name, length=options.length_or(LENGTH), device=options.device, dtype=options.dtype)
    tokens = list(range(len(workload.token_ids) - 1))
    all_passes = workload.num_layers * (len(tokens) + 1)
    num_passes = min(options.naive_passes or all_passes, all_passes)
    timings = time_interleaved(
        _calls(workload, tokens=tokens, num_passes=num_passes),
        repeats=options.repeats,
        device=options.device,
        warmups={NAIVE: naive_call(workload, tokens=tokens, num_passes=2)},
    )
    timings[NAIVE] = timings[NAIVE].scaled(all_passes / num_passes)
    checks = check_engine(workload, tokens=tokens, dtype=options.dtype)
    return Measured(workload=workload, tokens=tokens, num_passes=num_passes, timings=timings, checks=checks)


def _calls(workload: Workload, *, tokens: list[int], num_passes: int) -> dict[str, Callable[[], object]]:
    """What is timed; the model is loaded, and the first call adopts it anew."""
    model, token_ids = workload.model, workload.token_ids
    masker = AttentionMasker(model)
    return {
        NAIVE: naive_call(workload, tokens=tokens, num_passes=num_passes),
        ENGINE: lambda: masker.run(token_ids, tokens=tokens),
        FIRST: lambda: AttentionMasker(model).run(token_ids, tokens=tokens),
        FORWARD: plain_forward(workload),
    }


def naive_call(workload: Workload, *, tokens: list[int], num_passes: int) -> Callable[[], object]:
    """The naive way, ended after so many forwards."""
    return lambda: run_naive(workload.model, workload.token_ids, tokens=tokens, max_passes=num_passes)


def plain_forward(workload: Workload) -> Callable[[], object]:
    """One Hugging Face forward of the base model: SDPA, no vocabulary head, no cache, in inference mode."""
    input_ids = torch.tensor([workload.token_ids], device=workload.model.device)

    @torch.inference_mode()
    def forward() -> object:
        return workload.model.base_model(input_ids=input_ids, use_cache=False)

    return forward


def _costs(measured: Measured) -> dict[str, Cost]:
    model, length = measured.workload.model, len(measured.workload.token_ids)
    return {
        ENGINE: table_cost(model, length=length, num_tokens=len(measured.tokens)),
        FORWARD: forward_cost(model, length=length),
    }


def _ratios(measured: Measured, ceilings: Ceilings) -> dict[str, float]:
    """The figures that the suite is about, from the medians."""
    seconds = {name: timing.median for name, timing in measured.timings.items()}
    ratios = {
        f"{ENGINE} / {FORWARD}": seconds[ENGINE] / seconds[FORWARD],
        f"{FIRST} / {FORWARD}": seconds[FIRST] / seconds[FORWARD],
        f"{NAIVE} / {ENGINE}": seconds[NAIVE] / seconds[ENGINE],
    }
    for name, cost in _costs(measured).items():
        ratios[f"{name}: share of read bandwidth"] = cost.num_bytes / seconds[name] / ceilings.bytes_per_second
        ratios[f"{name}: share of the roofline"] = cost.least_seconds(ceilings) / seconds[name]
    return ratios


def _conditions(options: Options, ceilings: Ceilings) -> list[str]:
    return [
        f"dtype {options.dtype}, {options.repeats} interleaved rounds after one warm-up of each call; medians",
        f"measured read bandwidth {ceilings.bytes_per_second / 1e9:.1f} GB/s, "
        f"float32 products {ceilings.flop_per_second / 1e9:.0f} GFLOP/s",
        "masked tokens: all but the final one, where the distances are read",
        f"{FORWARD}: Hugging Face, SDPA, base model without vocabulary head, no cache, inference mode",
        f"{FIRST}: on a new AttentionMasker, adoption included; loading the model is not",
        "share of the roofline: reading the layers' weights once, or computing all rows, whichever takes longer at the "
        "measured rates, over the measured time; caches can lift it above 1 where the weights fit into them",
        *(["QUICK RUN: figures are not meant to be reported"] if options.quick else []),
    ]


def _timing_table(found: list[Measured]) -> Table:
    header = ("workload", "what", "median ms", "min ms", "max ms", "spread")
    rows = []
    for measured in found:
        for name, timing in measured.timings.items():
            times = (f"{1e3 * value:.2f}" for value in (timing.median, timing.minimum, timing.maximum))
            rows.append((measured.workload.label, name, *times, f"{timing.spread:.0%}"))
    return Table(title="Times", header=header, rows=tuple(rows))


def _ratio_table(found: list[Measured], ceilings: Ceilings) -> Table:
    rows = [
        (measured.workload.label, name, f"{value:.3g}")
        for measured in found
        for name, value in _ratios(measured, ceilings).items()
    ]
    return Table(title="Ratios of the medians", header=("workload", "figure", "value"), rows=tuple(rows))


def _rows(measured: Measured, ceilings: Ceilings) -> list[Row]:
    name, length = measured.workload.name, len(measured.workload.token_ids)
    times = [
        Row.of(provider, "time", "s", (t.median, t.minimum, t.maximum), workload=name, x=length)
        for provider, t in measured.timings.items()
    ]
    ratios = [
        Row.of(ENGINE, metric, "1", (value,), workload=name, x=length)
        for metric, value in _ratios(measured, ceilings).items()
    ]
    return times + ratios


def _passes_note(measured: Measured) -> str:
    ran, all_passes = measured.num_passes, measured.all_passes
    how = "all of them timed" if ran == all_passes else f"{ran} timed and extrapolated by {all_passes / ran:.3g}"
    return f"{measured.workload.label}: the naive way takes {all_passes} forwards; {how}"
