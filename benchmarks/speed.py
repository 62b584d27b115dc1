"""How long the whole impact table takes: the engine, beside the naive way and beside one plain forward.

All run in turn in one process on the same loaded model. Every token is masked, as the engine does by default, so that
7 tokens and 28 layers make 28 * (7 + 1) = 224 forwards of the naive way.
"""

from collections.abc import Iterator

from benchmarks.machine import Ceilings, describe_machine, measure_ceilings
from benchmarks.options import Options
from benchmarks.report import Report
from benchmarks.timings import CONDITIONS, Measured, measure_times, ratio_tables, timing_table
from benchmarks.workloads import load_workload

LENGTHS = {"qwen3-0.6b": (7, 64, 512)}
SHORT = (7, 64)
LONG = 2048
"""Measured too when every suite runs, or when asked for."""


def run_speed(options: Options, *, command: str) -> Report:
    """The speed suite: by default on the demo model and on Qwen3-0.6B's shape."""
    provenance = describe_machine(options.device)
    ceilings = measure_ceilings(options.device, dtype=options.dtype, quick=options.quick)
    found = list(_measure_all(options, ceilings))
    return Report(
        suite="speed",
        command=command,
        provenance=provenance,
        conditions=[*timing_conditions(options, ceilings), *CONDITIONS, *options.warning],
        tables=[*ratio_tables(found), timing_table(found)],
        rows=[row for measured in found for row in measured.rows],
        notes=[measured.note for measured in found],
        figures={f"{m.workload.label}: {name}": value for m in found for name, value in m.ratios.items()},
        checks={text: held for measured in found for text, held in measured.checks.items()},
        judged=not options.quick and options.device == "cpu",
    )


def timing_conditions(options: Options, ceilings: Ceilings) -> list[str]:
    """How a device was timed, and what it can do at the most."""
    return [
        f"dtype {ceilings.dtype}, {options.repeats} interleaved rounds after warming up; medians",
        f"measured read bandwidth {ceilings.bytes_per_second / 1e9:.1f} GB/s, "
        f"{ceilings.dtype} products {ceilings.flop_per_second / 1e9:.0f} GFLOP/s",
    ]


def _measure_all(options: Options, ceilings: Ceilings) -> Iterator[Measured]:
    """Every shape at each of its lengths; a model is loaded once."""
    for name in options.shapes_or("demo", "qwen3-0.6b"):
        own = LENGTHS.get(name, SHORT)
        long = (LONG,) if options.every_suite and name in LENGTHS and not options.quick else ()
        first, *others = options.lengths_or(*own, *long)
        workload = load_workload(name, length=first, device=options.device, dtype=options.dtype)
        for each in (workload, *map(workload.of_length, others)):
            yield measure_times(each, options, ceilings)
