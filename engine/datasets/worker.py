"""One worker: it measures a shard, writes what it found and returns a receipt."""

import threading
import time
from collections.abc import Callable, Container, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from engine.datasets.folder import IMPACTS, Folder
from engine.datasets.frames import Measured, Read, frames, ids_in
from engine.datasets.orders import Order as Order
from engine.datasets.orders import Receipt as Receipt
from engine.datasets.orders import Stopped
from engine.datasets.shards import Shard
from engine.errors import ImpactError, ModelError
from engine.inputs.entries import Entry
from engine.kernels.products import keeping_to
from engine.model.devices import memory_errors, trim_memory
from engine.questions.question import ask
from engine.runs.effect import Effect
from engine.runs.impact import Impact
from engine.runs.jobs import Job, Task
from engine.runs.many import measured
from engine.runs.measuring import Found, Measuring
from engine.runs.schedule import Schedule
from engine.tables.results import reading

WRITERS: dict[str, Callable[[pl.DataFrame, Path], object]] = {
    "parquet": lambda frame, path: frame.write_parquet(path, compression="zstd"),
    "csv": lambda frame, path: frame.write_csv(path),
}

TRIMMED_EVERY = 4
"""Shards after which freed memory goes back to the system."""


class Worker:
    """A decoder at work on the shards of one dataset.

    ``stop`` can be set from another thread: ``measure`` then ends with ``Stopped`` before its next pass.
    """

    def __init__(self, order: Order, measuring: Measuring) -> None:
        self.stop = threading.Event()
        self._order, self._measuring = order, measuring
        self._folder = Folder(Path(order.folder), order.form)
        self._schedule = Schedule(measuring.decoder, rows=order.rows_per_pass)
        self._task = Task(order.layers, order.tokens, ask(order.question))
        self._preparing = measuring.preparing(self._task)

    @classmethod
    def from_order(cls, order: Order) -> "Worker":
        """Load the model that the order names. Raises ``ModelError`` and ``DeviceError``."""
        import torch

        from engine.checks.selfcheck import self_check
        from engine.model.fingerprint import fingerprint
        from engine.model.loading import load_view

        if order.threads is not None:
            torch.set_num_threads(order.threads)
        place = {name: getattr(order, name) for name in ("device", "dtype", "route", "stream", "device_map")}
        decoder, tokenizer = load_view(order.model, **place)
        if order.fingerprint not in (None, fingerprint(decoder)):
            raise ModelError(
                f"{order.model!r} is another model here than where the run began; give every worker the same"
            )
        if order.check:
            self_check(decoder, None)
        with keeping_to(order.product), memory_errors(decoder.device), torch.inference_mode():
            if order.packed and not order.stream:
                decoder.pack()
        return cls(order, Measuring(decoder, tokenizer))

    def __call__(self, shard: Shard) -> Receipt:
        """Measure the shard and write it."""
        return self.write(self.measure(shard))

    def measure(self, shard: Shard) -> Measured:
        """What each prompt of the shard gives. A bad prompt stops nothing; raises ``Stopped``."""
        started, halvings = time.perf_counter(), self._schedule.halvings
        prompts = [entry for entry in shard.entries if entry.defect is None]
        with keeping_to(self._order.product):
            found = self._found(prompts, self._ids_in_part(shard))
        if shard.before is not None and any(isinstance(each, Impact | Effect) for each in found.values()):
            return self.measure(replace(shard, before=None))  # its part lacks what can be measured now
        of = {entry.row: found[place] for place, entry in enumerate(prompts)}
        outcomes = tuple(_outcome(of.get(entry.row, entry.defect)) for entry in shard.entries)
        return Measured(shard, outcomes, time.perf_counter() - started, self._schedule.halvings - halvings)

    def write(self, measured: Measured) -> Receipt:
        """Put the shard's files into place, its receipt last. Raises ``ResultsError``."""
        index, run_id = measured.shard.index, self._order.run_id
        tables, files = frames(measured), []
        for name, frame in tables.items():
            form = self._order.form if name == IMPACTS else "parquet"
            files.append(self._folder.put(run_id, self._folder.piece(name, index), partial(WRITERS[form], frame)))
        receipt = Receipt(
            shard=index,
            digest=measured.shard.digest,
            counts=_counts(tables),
            files=dict(files),
            measured_s=measured.seconds,
            halvings=measured.halvings,
        )
        if (before := measured.shard.before) is not None:
            part = {name: facts for name, facts in before.files.items() if name.startswith(IMPACTS)}
            receipt = replace(before, files={**part, **receipt.files})
        self._folder.put_receipt(run_id, receipt)
        if index % TRIMMED_EVERY == 0:
            trim_memory()
        return receipt

    def _found(self, prompts: Sequence[Entry], known: Container[str]) -> dict[int, Found | Read | ImpactError]:
        """What each prompt gives, or why it gives nothing, by its place; those ``known`` are read alone."""
        jobs = self._preparing.jobs([e.prompt for e in prompts], [e.prompt_id for e in prompts])
        read = {
            place: Read(job.prompt)
            for place, job in enumerate(jobs)
            if isinstance(job, Job) and str(prompts[place].prompt_id) in known
        }
        rest = [place for place in range(len(jobs)) if place not in read]
        found = measured([jobs[place] for place in rest], schedule=self._schedule, measure=self._pass)
        return {**read, **{place: found[nth] for nth, place in enumerate(rest)}}

    def _ids_in_part(self, shard: Shard) -> set[str]:
        """The prompts whose numbers need not be measured again."""
        path = self._folder.piece(IMPACTS, shard.index)
        if shard.before is None or not path.is_file():
            return set()
        with reading(path):
            return set(ids_in(path))

    def _pass(self, jobs: list[Job]) -> list[Found]:
        if self.stop.is_set():
            raise Stopped
        return self._measuring.measure(jobs, self._task)


def _outcome(found: Any) -> Found | Read | str:
    return found if isinstance(found, Impact | Effect | Read) else " ".join(str(found).split())


def _counts(tables: dict[str, pl.DataFrame]) -> dict[str, int]:
    names = {"prompts": "prompts", "rejected": "rejected", "tokens": "tokens", "rows": IMPACTS}
    return {count: tables[table].height if table in tables else 0 for count, table in names.items()}
