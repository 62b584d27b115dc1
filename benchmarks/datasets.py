"""Datasets of a model in memory: what they take, what of it is arithmetic, and what a plain forward takes beside it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks.batched import batched_forward, padded_batches, random_prompts, time_batches
from benchmarks.measure import Call, Timing, time_interleaved
from benchmarks.workloads import Workload
from engine import AttentionMasker
from engine.datasets.manifest import Manifest
from engine.datasets.worker import WRITERS
from engine.sweeps import passes

DATASET, FIRST_DATASET, BATCHED = "engine", "engine, first dataset", "batched forward"
MEASURED_COLUMNS = ("l2_distance", "cosine_distance")


@dataclass(frozen=True, kw_only=True)
class DatasetRun:
    """One call of ``run_dataset``: ``arithmetic_s`` is the part of it in which a pass was under way."""

    seconds: float
    arithmetic_s: float
    manifest: Manifest

    @property
    def session_s(self) -> float:
        """Seconds from the first shard on: what comes once a run, fingerprint and packing, is over."""
        return float(self.manifest["times"]["sessions"][-1]["seconds"])

    @property
    def share(self) -> float:
        """Of the whole time, what was not arithmetic."""
        return 1 - self.arithmetic_s / self.seconds

    @property
    def session_share(self) -> float:
        """The same from the first shard on."""
        return 1 - self.arithmetic_s / self.session_s


@dataclass(frozen=True, kw_only=True)
class Disk:
    """Bytes of the impact tables, and how many of them remain when the distances are left out of a part."""

    rows: int
    total_bytes: int
    coordinate_share: float

    @property
    def bytes_per_row(self) -> float:
        return self.total_bytes / self.rows

    @property
    def coordinate_bytes_per_row(self) -> float:
        """Of prompt, layer, token, position and variant."""
        return self.bytes_per_row * self.coordinate_share


@dataclass(frozen=True, kw_only=True)
class Beside:
    """A set measured by the engine, and run through the plain model."""

    label: str
    prompts: list[list[int]]
    batch_seconds: dict[int, float]
    timings: dict[str, Timing]
    first: DatasetRun
    steady: list[DatasetRun]
    disk: Disk

    @property
    def batch(self) -> int:
        return min(self.batch_seconds, key=self.batch_seconds.__getitem__)


@dataclass
class Datasets:
    """Datasets of the same prompts, each in a new folder, as calls that can be timed."""

    prompts: list[list[int]]
    folder: Path
    runs: list[DatasetRun] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=count)

    def make(self, masker: Callable[[], AttentionMasker]) -> AttentionMasker:
        """Make one more; what it took is the last of ``runs``."""
        started = time.perf_counter()
        with passes_timed() as clock:
            used = masker()
            manifest = used.run_dataset(self.prompts, self.folder / str(next(self._numbers)))
        seconds = time.perf_counter() - started
        self.runs.append(DatasetRun(seconds=seconds, arithmetic_s=sum(clock), manifest=manifest))
        return used


@contextmanager
def passes_timed() -> Iterator[list[float]]:
    """The seconds of every pass in the block: layers and distances, from token ids on the device to numbers there."""
    plain = passes.measure_readouts
    seconds: list[float] = []

    def timed(*arguments: Any, **named: Any) -> Any:
        started = time.perf_counter()
        try:
            return plain(*arguments, **named)
        finally:
            seconds.append(time.perf_counter() - started)

    passes.measure_readouts = timed
    try:
        yield seconds
    finally:
        passes.measure_readouts = plain


def measure_beside(workload: Workload, *, lengths: tuple[int, int], size: int, rounds: int, folder: Path) -> Beside:
    """The engine's first dataset on a new masker, then datasets and batched forwards in turn."""
    vocab_size = workload.model.config.vocab_size
    prompts = random_prompts(size, lengths, vocab_size=vocab_size)
    batch_seconds = time_batches(workload.model, prompts)
    best = min(batch_seconds, key=batch_seconds.__getitem__)
    made = Datasets(prompts, folder)
    masker = made.make(lambda: AttentionMasker(workload.model))
    calls: dict[str, Call] = {
        BATCHED: batched_forward(workload.model, padded_batches(prompts, best)),
        DATASET: lambda: made.make(lambda: masker),
    }
    warm: dict[str, Call] = dict.fromkeys(calls, lambda: None)
    timings = time_interleaved(calls, repeats=rounds, warmups=warm, label=f"{workload.name}, {size} prompts")
    first, *steady = made.runs
    label = f"{workload.name}, {size:,} prompts of {lengths[0]} to {lengths[1]} tokens"
    disk = disk_of(folder / "0")
    timings[FIRST_DATASET] = Timing((first.seconds,))
    return Beside(
        label=label,
        prompts=prompts,
        batch_seconds=batch_seconds,
        timings=timings,
        first=first,
        steady=steady,
        disk=disk,
    )


def disk_of(folder: Path) -> Disk:
    """What the dataset's impact tables take on disk; the first part is written again without its distances."""
    parts = sorted((folder / "impacts").iterdir())
    bare = folder / "coordinates.parquet"
    WRITERS["parquet"](pl.read_parquet(parts[0]).drop(MEASURED_COLUMNS), bare)
    return Disk(
        rows=int(pl.scan_parquet(parts, glob=False).select(pl.len()).collect().item()),
        total_bytes=sum(part.stat().st_size for part in parts),
        coordinate_share=bare.stat().st_size / parts[0].stat().st_size,
    )
