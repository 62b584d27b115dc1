"""What a GPU makes of it: speed at both ends of prompt length, many prompts at once, memory, and errors.

One command on a machine with a GPU: ``python -m benchmarks --suite cuda``. It runs what the speed and accuracy suites
run, there and in two dtypes, and beside them the engine on bfloat16 weights with float32 answers, and without replay.
"""

from dataclasses import dataclass, replace

from benchmarks.accuracy import Measured as Errors
from benchmarks.accuracy import error_checks, error_rows, error_tables, measure_errors, truth_note
from benchmarks.calls import EAGER, ENGINE, NAIVE, SPLIT
from benchmarks.crowd import Crowd, crowd_tables, measure_crowd
from benchmarks.machine import describe_machine, measure_ceilings, require_device
from benchmarks.options import Options
from benchmarks.report import Report, Row, Table
from benchmarks.speed import timing_conditions
from benchmarks.timings import CONDITIONS, Measured, measure_on_gpu, peak_tables, ratio_tables, timing_table
from benchmarks.workloads import load_workload
from engine.kernels.split import TERMS

DEVICE = "cuda"
DTYPES = ("float32", "bfloat16")
LENGTHS = (7, 4096)
JUDGED_DEVICE = "H200"
OWN_CONDITIONS = (
    f"{ENGINE} and {SPLIT} replay a recorded pass where the prompt is short; '{EAGER}' asks for every kernel",
    f"{SPLIT}: bfloat16 weights, float32 rows split into {TERMS} bfloat16 terms, float32 answers; beside it stand the "
    f"{NAIVE} way and the plain forward in float32",
    "timed with CUDA events, from an idle GPU until the call has returned and its work is done",
    "errors: against float64 on the CPU",
    f"bars: set for an {JUDGED_DEVICE}, judged there alone",
)


@dataclass(frozen=True, kw_only=True)
class Found:
    """All that was measured in one dtype."""

    conditions: list[str]
    prompts: list[Measured]
    crowds: list[Crowd]
    errors: list[Errors]

    @property
    def tables(self) -> list[Table]:
        speed = [*ratio_tables(self.prompts), timing_table(self.prompts), *crowd_tables(self.crowds)]
        return speed + peak_tables(self.prompts) + error_tables(self.errors)

    @property
    def rows(self) -> list[Row]:
        timed: list[Measured | Crowd] = [*self.prompts, *self.crowds]
        return [row for each in timed for row in each.rows] + error_rows(self.errors)

    @property
    def notes(self) -> list[str]:
        return [*(m.note for m in self.prompts), *map(truth_note, self.errors)]

    @property
    def figures(self) -> dict[str, float]:
        timed: list[Measured | Crowd] = [*self.prompts, *self.crowds]
        return {f"{each.workload.label}: {name}": value for each in timed for name, value in each.ratios.items()}

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
            *OWN_CONDITIONS,
            *options.warning,
        ],
        tables=[table for part in found for table in part.tables],
        rows=[row for part in found for row in part.rows],
        notes=[note for part in found for note in part.notes],
        figures={name: value for part in found for name, value in part.figures.items()},
        checks={text: held for part in found for text, held in part.checks.items()},
        judged=not options.quick and JUDGED_DEVICE in provenance.device,
    )


def _measure(options: Options) -> Found:
    """Speed on the shapes asked for, and errors on the accuracy suite's own."""
    own = measure_ceilings(DEVICE, dtype=options.dtype, quick=options.quick)
    narrow = measure_ceilings(DEVICE, dtype="bfloat16", quick=options.quick)
    first, *others = options.lengths_or(*LENGTHS)
    prompts: list[Measured] = []
    crowds: list[Crowd] = []
    for name in options.shapes_or("qwen3-0.6b"):
        workload = load_workload(name, length=first, device=DEVICE, dtype=options.dtype)
        lengths = (workload, *map(workload.of_length, others))
        prompts += [measure_on_gpu(each, options, own) for each in lengths]
        crowds.append(measure_crowd(workload, options, own=own, narrow=narrow))
    return Found(
        conditions=timing_conditions(options, own),
        prompts=prompts,
        crowds=crowds,
        errors=measure_errors(replace(options, shapes=None, lengths=None), split=options.dtype == "float32"),
    )
