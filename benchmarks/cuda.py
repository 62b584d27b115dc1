"""What a GPU makes of it: speed at both ends of prompt length, a batch of prompts, and errors against float64.

One command on a machine with a GPU: ``python -m benchmarks --suite cuda``. It runs what the speed and accuracy suites
run, there and in two dtypes; calls are timed with CUDA events.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.accuracy import Measured as Errors
from benchmarks.accuracy import error_checks, error_rows, error_tables, measure_errors, truth_note
from benchmarks.calls import ENGINE, FORWARD, plain_forward, repeated
from benchmarks.machine import describe_machine, measure_ceilings, require_device
from benchmarks.measure import TIMING_HEADER, Timing, time_interleaved
from benchmarks.options import Options
from benchmarks.report import Report, Row, Table
from benchmarks.speed import timing_conditions
from benchmarks.timings import CONDITIONS, Measured, measure_times, ratio_tables, timing_table
from benchmarks.workloads import Workload, load_workload, random_prompt
from engine import AttentionMasker

DEVICE = "cuda"
DTYPES = ("bfloat16", "float32")
LENGTHS = (7, 4096)
PROMPTS, PROMPT_LENGTH = 256, 64
BATCH_METHOD = "run_many"
"""The method of ``AttentionMasker`` that takes a sequence of prompts."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Times of many prompts at once."""

    workload: Workload
    num_prompts: int
    timings: dict[str, Timing]

    @property
    def rows(self) -> Iterator[Row]:
        for name, t in self.timings.items():
            rates = [self.num_prompts / seconds for seconds in (t.median, t.maximum, t.minimum)]
            yield Row.of(name, f"prompts per second, {self.num_prompts} at once", "1/s", rates, **self.workload.labels)


@dataclass(frozen=True, kw_only=True)
class Found:
    """All that was measured in one dtype."""

    conditions: list[str]
    prompts: list[Measured]
    batches: list[Batch]
    errors: list[Errors]

    @property
    def tables(self) -> list[Table]:
        speed = [*ratio_tables(self.prompts), timing_table(self.prompts), *_batch_tables(self.batches)]
        return speed + error_tables(self.errors)

    @property
    def rows(self) -> list[Row]:
        timed: list[Measured | Batch] = [*self.prompts, *self.batches]
        return [row for each in timed for row in each.rows] + error_rows(self.errors)

    @property
    def notes(self) -> list[str]:
        return [*(m.note for m in self.prompts), *_batch_notes(self.batches), *map(truth_note, self.errors)]

    @property
    def checks(self) -> dict[str, bool]:
        return {text: held for m in self.prompts for text, held in m.checks.items()} | error_checks(self.errors)


def run_cuda(options: Options, *, command: str) -> Report:
    """The cuda suite: by default Qwen3-0.6B's shape. Raises ``LeftOut`` without a GPU."""
    require_device(DEVICE)
    provenance = describe_machine(DEVICE)
    dtypes = options.dtypes_or(*DTYPES)
    found = [_measure(replace(options, device=DEVICE, dtypes=(dtype,))) for dtype in dtypes]
    return Report(
        suite="cuda",
        command=command,
        provenance=provenance,
        conditions=[
            *(line for part in found for line in part.conditions),
            *CONDITIONS,
            "timed with CUDA events, from an idle GPU until the call has returned and its work is done",
            "errors: against float64 on the CPU",
            *options.warning,
        ],
        tables=[table for part in found for table in part.tables],
        rows=[row for part in found for row in part.rows],
        notes=[note for part in found for note in part.notes],
        figures={f"{m.workload.label}: {k}": v for part in found for m in part.prompts for k, v in m.ratios.items()},
        checks={text: held for part in found for text, held in part.checks.items()},
    )


def _measure(options: Options) -> Found:
    """Speed on the shapes asked for, and errors on the accuracy suite's own."""
    ceilings = measure_ceilings(DEVICE, dtype=options.dtype, quick=options.quick)
    first, *others = options.lengths_or(*LENGTHS)
    prompts: list[Measured] = []
    batches: list[Batch] = []
    for name in options.shapes_or("qwen3-0.6b"):
        workload = load_workload(name, length=first, device=DEVICE, dtype=options.dtype)
        lengths = (workload, *map(workload.of_length, others))
        prompts += [measure_times(each, options, ceilings) for each in lengths]
        batches += _measure_batch(workload, options)
    return Found(
        conditions=timing_conditions(options, ceilings),
        prompts=prompts,
        batches=batches,
        errors=measure_errors(replace(options, shapes=None, lengths=None)),
    )


def _measure_batch(workload: Workload, options: Options) -> list[Batch]:
    """Many prompts of one length, where the engine takes several at once; a plain forward of all beside it."""
    masker: Any = AttentionMasker(workload.model)
    if not hasattr(masker, BATCH_METHOD):
        return []
    count = 4 if options.quick else PROMPTS
    prompt = workload.of_length(8 if options.quick else PROMPT_LENGTH)
    vocab_size, length = workload.model.config.vocab_size, len(prompt.token_ids)
    prompts = [random_prompt(length, vocab_size=vocab_size, seed=seed) for seed in range(count)]

    def engine() -> list[Any]:
        return list(getattr(masker, BATCH_METHOD)(prompts))

    timings = time_interleaved(
        {ENGINE: engine, FORWARD: plain_forward(prompt, batch=count)},
        repeats=options.repeats,
        device=options.device,
        warmups={ENGINE: repeated(engine)},
        label=f"{count} prompts",
    )
    return [Batch(workload=prompt, num_prompts=count, timings=timings)]


def _batch_tables(batches: list[Batch]) -> list[Table]:
    rows = tuple(
        (f"{batch.num_prompts} x {batch.workload.label}", name, *t.cells_ms, f"{batch.num_prompts / t.median:.4g}")
        for batch in batches
        for name, t in batch.timings.items()
    )
    header = ("workload", "what", *TIMING_HEADER, "prompts/s")
    return [Table(title="Many prompts at once", header=header, rows=rows)] if rows else []


def _batch_notes(batches: list[Batch]) -> list[str]:
    reason = f"AttentionMasker has no {BATCH_METHOD}, so it takes one prompt at a time"
    return [] if batches else [f"{PROMPTS} prompts of {PROMPT_LENGTH} tokens at once: left out, because {reason}"]
