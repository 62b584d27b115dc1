"""A set of prompts in, a dataset out: opens the input, chooses the crew, and lets the production run."""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from engine.datasets.blueprint import Blueprint
from engine.datasets.folder import Folder
from engine.datasets.manifest import Manifest
from engine.datasets.orders import Receipt
from engine.datasets.production import Crew, produce
from engine.datasets.progress import State
from engine.datasets.shards import Shard
from engine.datasets.worker import Worker
from engine.errors import InputError, ModelError, PromptError, SelectionError
from engine.files import FilePath, shown
from engine.inputs.entries import Entry, entries_of
from engine.inputs.prompt_files import PromptFile, open_prompts
from engine.inputs.unique import with_unique_ids
from engine.runs.measuring import Measuring

Prompts = Iterable[Any] | Mapping[Any, Any] | FilePath
LOCAL_CLUSTER = "local"


@dataclass(frozen=True, kw_only=True)
class Staff:
    """Who does the work: ``workers`` processes of this machine, or actors on the Ray cluster at ``ray``."""

    workers: int | None = None
    """None is this process, or as many actors as the cluster has room for."""
    ray: str | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise SelectionError(f"there cannot be {self.workers} workers; choose 1 or more")

    @property
    def is_elsewhere(self) -> bool:
        """Whether others than this process do the work, who load the model themselves."""
        return self.workers is not None or self.ray is not None


def make_dataset(
    blueprint: Blueprint,
    source: PromptFile | Prompts,
    directory: FilePath,
    *,
    measuring: Measuring | None,
    staff: Staff,
    overwrite: bool = False,
    watch: Callable[[State], object] = lambda state: None,
    note: Callable[[str], object] = lambda text: None,
) -> Manifest:
    """Make the dataset of these prompts, or go on with it; see ``production.produce``.

    ``measuring`` does the work where ``staff`` is this process alone. ``note`` is told what a person may want to know.
    """
    folder = Folder(Path(directory), blueprint.settings["format"])
    prompts = opened(source, blueprint.settings)
    _require_outside(source, folder.path)
    name = prompts.name if isinstance(prompts, PromptFile) else "prompts from Python"
    return produce(
        _entries(prompts, blueprint.settings),
        folder,
        blueprint.manifest(source_name=name),
        _crew(blueprint, folder, measuring, staff, note),
        rows_per_token=blueprint.rows_per_token,
        overwrite=overwrite,
        fraction=prompts.fraction_read if isinstance(prompts, PromptFile) else lambda: None,
        watch=watch,
        note=note,
    )


def opened(source: PromptFile | Prompts, settings: Mapping[str, Any]) -> "PromptFile | Iterable[Any]":
    """The input, ready to be read: a path becomes a file. Raises ``InputError`` and ``PromptError``."""
    if isinstance(source, str | os.PathLike):
        columns = {name: settings[name] for name in ("prompt_column", "id_column", "limit")}
        return open_prompts(source, **columns)
    if not isinstance(source, Iterable):
        raise PromptError(f"many prompts are a file, a list, a mapping or any other iterable, not {source!r:.80}")
    named = [name for name in ("prompt_column", "id_column") if settings[name] is not None]
    if named and not isinstance(source, PromptFile):
        raise SelectionError(f"{named[0]} is for files with columns; prompts from Python have none: leave it out")
    return source


def _require_outside(source: object, folder: Path) -> None:
    """Raise ``InputError`` for an input that would be replaced by what is made of it."""
    name = source.name if isinstance(source, PromptFile) else source
    if isinstance(name, str | os.PathLike) and folder.resolve() in Path(name).resolve().parents:
        raise InputError(f"{shown(name)} lies in the folder of the dataset; keep prompts and results apart")


def _entries(prompts: PromptFile | Iterable[Any], settings: Mapping[str, Any]) -> Iterator[Entry]:
    if isinstance(prompts, PromptFile):
        return with_unique_ids(prompts) if settings["id_column"] is not None else iter(prompts)
    entries = islice(entries_of(prompts), settings["limit"])
    return with_unique_ids(entries) if isinstance(prompts, Mapping) else entries


def _crew(
    blueprint: Blueprint,
    folder: Folder,
    measuring: Measuring | None,
    staff: Staff,
    note: Callable[[str], object],
) -> Crew:
    """The crew of this process, of several, or of a cluster."""
    if not staff.is_elsewhere:
        assert measuring is not None
        return _serial(blueprint, folder, measuring)
    if blueprint.source is None:
        raise ModelError(
            "workers load the model themselves, and cannot load one that only this process holds; make the masker with "
            "AttentionMasker.from_pretrained, or use one worker"
        )
    return _elsewhere(blueprint, folder, staff, note)


def _serial(blueprint: Blueprint, folder: Folder, measuring: Measuring) -> Crew:
    from engine.crews import serial

    def crew(run_id: str, manifest: Manifest, shards: Iterator[Shard], stop: threading.Event) -> Iterator[Receipt]:
        order = blueprint.order(manifest, run_id=run_id, folder=folder.path)
        return serial.receipts(Worker(order, measuring), shards, stop=stop)

    return crew


def _elsewhere(blueprint: Blueprint, folder: Folder, staff: Staff, note: Callable[[str], object]) -> Crew:
    def crew(run_id: str, manifest: Manifest, shards: Iterator[Shard], stop: threading.Event) -> Iterator[Receipt]:
        order = blueprint.order(manifest, run_id=run_id, folder=folder.path)
        if staff.ray is None:
            from engine.crews import processes

            return processes.receipts(order, shards, num_workers=staff.workers or 1, stop=stop, note=note)
        from engine.crews import cluster

        address = None if staff.ray == LOCAL_CLUSTER else staff.ray
        return cluster.receipts(order, shards, num_workers=staff.workers, stop=stop, address=address, note=note)

    return crew
