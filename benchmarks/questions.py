"""How long other questions than the default one take: attention knockout, cuts in all layers, all query positions.

Each runs in turn with what it would take with plain forwards, on the same loaded model, everything up to the finished
table included.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from benchmarks.answers import check_answers
from benchmarks.calls import ENGINE, all_passes
from benchmarks.cost import forward_cost, head_cost, knockout_rows_cost, table_cost
from benchmarks.machine import describe_machine
from benchmarks.measure import TIMING_HEADER
from benchmarks.options import Options
from benchmarks.report import Report, Row, Table
from benchmarks.trials import CONDITIONS, KNOCKOUT, QUERIES, TRIALS, Timed, Trial, time_trial
from benchmarks.workloads import Workload, load_workload
from engine import AttentionMasker


def run_questions(options: Options, *, command: str) -> Report:
    """The questions suite: by default Qwen3-0.6B's shape."""
    provenance = describe_machine(options.device)
    found = [timed for name in options.shapes_or("qwen3-0.6b") for timed in _measure_all(name, options)]
    return Report(
        suite="questions",
        command=command,
        provenance=provenance,
        conditions=[
            f"dtype {options.dtype}, {options.repeats} interleaved rounds after warming up; medians",
            *CONDITIONS,
            *options.warning,
        ],
        tables=[*ratio_tables(found), timing_table(found)],
        rows=[row for timed in found for row in rows_of(timed)],
        notes=[note for timed in found for note in notes_on(timed)],
        figures={f"{timed.workload.label}: {name}": r for timed in found for name, r in timed.ratios.items()},
        checks={text: held for timed in found for text, held in timed.checks.items()},
        judged=not options.quick and options.device == "cpu",
    )


def _measure_all(name: str, options: Options) -> Iterator[Timed]:
    """Every question at each of its lengths, on one model and one masker."""
    first = load_workload(name, length=TRIALS[0].lengths[0], device=options.device, dtype=options.dtype)
    masker = AttentionMasker(first.model)
    for trial in TRIALS:
        for length in options.lengths_or(*trial.lengths):
            yield _measure(trial, first.of_length(length), masker, options)


def _measure(trial: Trial, workload: Workload, masker: AttentionMasker, options: Options) -> Timed:
    timed = time_trial(trial, workload, masker, options)
    return replace(timed, checks=check_answers(trial, workload, masker))


def ratio_tables(found: Sequence[Timed]) -> list[Table]:
    """One row a prompt and ratio."""
    rows = tuple((t.workload.label, name, f"{value:.3g}") for t in found for name, value in t.ratios.items())
    return [Table(title="Ratios of the medians", header=("workload", "what", "ratio"), rows=rows)]


def timing_table(found: Sequence[Timed]) -> Table:
    """One row a prompt and call, with the spread that a ratio is uncertain by."""
    rows = tuple((t.workload.label, name, *timing.cells_ms) for t in found for name, timing in t.timings.items())
    return Table(title="Times", header=("workload", "what", *TIMING_HEADER), rows=rows)


def rows_of(timed: Timed) -> Iterator[Row]:
    """Times and ratios for the CSV."""
    labels = timed.workload.labels
    for provider, t in timed.timings.items():
        yield Row.of(provider, "time", "s", (t.median, t.minimum, t.maximum), **labels)
    for metric, ratio in timed.ratios.items():
        yield Row.of(ENGINE, metric, "1", (ratio,), **labels)


def notes_on(timed: Timed) -> Iterator[str]:
    """How many forwards the naive way takes, and what the arithmetic alone would come to."""
    workload, length = timed.workload, len(timed.workload.token_ids)
    if timed.trial.name == KNOCKOUT:
        yield (
            f"{workload.label}: {KNOCKOUT} takes {workload.num_layers} x {length} + 1 = "
            f"{workload.num_layers * length + 1:,} forwards with logits the naive way"
        )
        yield arithmetic_note(workload)
    if timed.trial.name == QUERIES:
        total = all_passes(workload)
        yield (
            f"{workload.label}: {QUERIES} take {workload.num_layers} x ({length} + 1) = {total:,} forwards the naive "
            f"way; {timed.num_passes} timed and extrapolated by {total / timed.num_passes:.3g}"
        )


def arithmetic_note(workload: Workload) -> str:
    """FLOP of the knockout's parts over those of one plain forward with logits of all positions."""
    model, length = workload.model, len(workload.token_ids)
    plain = forward_cost(model, length=length).flop + head_cost(model, rows=length).flop
    parts = {
        "baseline": table_cost(model, length=length, num_tokens=0).flop,
        "rows that travel": knockout_rows_cost(model, num_tokens=length).flop,
        "logits": head_cost(model, rows=1 + workload.num_layers * length).flop,
    }
    total, shares = sum(parts.values()), ", ".join(f"{name} {flop / plain:.3g}" for name, flop in parts.items())
    return (
        f"{workload.label}: arithmetic of {KNOCKOUT} over that of one plain forward with logits: {shares}; together "
        f"{total / plain:.3g} ({total / 1e9:.4g} over {plain / 1e9:.4g} GFLOP; matrices alone)"
    )
