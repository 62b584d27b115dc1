"""Large sets of prompts: datasets beside plain forwards, the command line's rate, bytes on disk, memory, workers."""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.command_sets import ONE_WORKER, Commanded, run_commands
from benchmarks.datasets import BATCHED, DATASET, FIRST_DATASET, Beside, measure_beside
from benchmarks.machine import describe_machine
from benchmarks.options import LeftOut, Options
from benchmarks.report import Report
from benchmarks.set_tables import batch_note, beside_rows, command_rows, set_tables, spread_note
from benchmarks.workloads import load_workload

ROUNDS = 2
"""At the most: a round takes minutes."""
CONDITIONS = (
    "dataset: run_dataset into a new folder on the disk of the system's temporary folder, every file written, hashed "
    "and synced; prompts are lists of token ids, because random models have no tokenizer; all layers and tokens",
    f"{FIRST_DATASET}: the first of a new AttentionMasker, taking the loaded model over, choosing the product, packing "
    f"its weights and their fingerprint included; {DATASET}: later ones of the same masker, whose weights are packed, "
    "the fingerprint included",
    f"{BATCHED}: transformers' base model, SDPA, attention mask, no cache, no vocabulary head, prompts sorted by "
    "length and padded on the right, batches made beforehand, inference mode, all weights resident",
    "arithmetic: the passes, from token ids laid out on the device to distances there. Everything else is none: "
    "reading, tokenizing, batching, checks, tables, writing, syncing, hashing, fingerprint, packing, merging. What the "
    "writer's thread does beside a pass costs no time of its own, but takes a core from that pass",
    "command line: python cli.py --prompts FILE.txt --output DIR --quiet on the embedded model, float32; texts of "
    "random words that are tokens. A whole process includes importing torch and transformers and loading the model",
    "session: the time that the manifest notes, from the open folder to the complete dataset; with workers their "
    "start, imports and loading of the model are inside",
    f"{ONE_WORKER}: that core, and a count of cores of 1, for coordinator, worker and writer alike, since a lone "
    "worker would otherwise take all cores; --workers 2 on 2 cores gives each worker one thread",
    "peak memory: the highest resident memory of the whole process, read when it has ended",
)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of the sets: on the model in memory with shortest and longest prompt, and on the command line."""

    prompts: int = 256
    lengths: tuple[int, int] = (4, 64)
    small: int = 5_000
    large: int = 50_000


QUICK = Sizes(prompts=12, lengths=(4, 16), small=6, large=60)


def run_sets(options: Options, *, command: str) -> Report:
    """The sets suite: by default Qwen3-0.6B's shape, and the embedded model on the command line."""
    if sys.platform == "win32":
        raise LeftOut("the sets suite reads the memory of a process that has ended, which Windows does not tell")
    provenance, sizes = describe_machine("cpu"), QUICK if options.quick else Sizes()
    rounds = min(options.repeats, ROUNDS)
    with tempfile.TemporaryDirectory() as folder:
        commanded = run_commands(small=sizes.small, large=sizes.large, rounds=rounds, folder=Path(folder))
    found = [_beside(name, sizes, options, rounds) for name in options.shapes_or("qwen3-0.6b")]
    rows = [*(row for each in found for row in beside_rows(each)), *command_rows(commanded)]
    return Report(
        suite="sets",
        command=command,
        provenance=provenance,
        conditions=[f"{rounds} interleaved rounds; medians", *CONDITIONS, *options.warning],
        tables=set_tables(found, commanded),
        rows=rows,
        notes=[*map(batch_note, found), *spread_note(found, commanded)],
        figures={f"{row.workload}: {row.provider}: {row.metric}": row.median for row in rows if row.metric != "time"},
        checks=_checks(found, commanded),
        judged=not options.quick,
    )


def _beside(name: str, sizes: Sizes, options: Options, rounds: int) -> Beside:
    workload = load_workload(name, length=sizes.lengths[0], dtype=options.dtype)
    with tempfile.TemporaryDirectory() as folder:
        return measure_beside(workload, lengths=sizes.lengths, size=sizes.prompts, rounds=rounds, folder=Path(folder))


def _checks(found: list[Beside], commanded: Commanded) -> dict[str, bool]:
    """Whether every prompt of every set has its rows."""
    checks = {
        f"{each.label}: all of them are in every dataset": all(
            run.manifest["counts"]["prompts"] == len(each.prompts) for run in (each.first, *each.steady)
        )
        for each in found
    }
    for runs in commanded:
        complete = all(run.finished == runs.size and run.rows == runs.rows for run in runs.runs)
        checks[f"{runs.label}, {runs.name}: all of them are in every dataset"] = complete
    return checks
