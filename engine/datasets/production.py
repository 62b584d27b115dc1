"""From entries to a complete dataset: the one place where shards, crew, folder and manifest meet."""

import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from engine.datasets.feed import Feed
from engine.datasets.folder import RECEIPTS, Folder, sync_folder
from engine.datasets.locking import LOCK, locked
from engine.datasets.manifest import (
    CLEARING,
    COMPLETE,
    RUNNING,
    Manifest,
    differences,
    now,
    read_manifest,
    write_manifest,
)
from engine.datasets.merging import merge
from engine.datasets.orders import Receipt
from engine.datasets.progress import State
from engine.datasets.shards import Shard, cut_shards
from engine.datasets.stopping import stopping
from engine.errors import ResultsError
from engine.files import is_leftover, shown
from engine.inputs.entries import Entry
from engine.model.devices import release_memory

Crew = Callable[[str, Manifest, Iterator[Shard], threading.Event], Iterator[Receipt]]
"""What does the work: run id, manifest, shards and stop signal -> receipts, in any order."""


def produce(
    entries: Iterable[Entry],
    folder: Folder,
    manifest: Manifest,
    crew: Crew,
    *,
    rows_per_token: int,
    overwrite: bool = False,
    fraction: Callable[[], float | None] = lambda: None,
    watch: Callable[[State], object] = lambda state: None,
    note: Callable[[str], object] = lambda text: None,
) -> Manifest:
    """Make the dataset that ``manifest`` describes, or go on where an earlier run stopped; its manifest at the end.

    Raises ``ResultsError`` for a folder that holds something else, another run at work in it, a dataset of another
    model, setting or input, and a disk that takes no more; ``Interrupted`` after Ctrl-C. In every case what is finished
    stays, and the same call goes on from there.
    """
    with locked(folder.path), stopping() as stop:
        run = _Run(folder, begun(folder, manifest, overwrite=overwrite))
        shards = cut_shards(entries, rows_per_token=rows_per_token)
        feed = Feed(shards, dict(run.finished), run.whole, run.before, run.was_merged, fraction, stop)
        run.tell_what_was(note)
        try:
            for receipt in crew(run.run_id, run.manifest, iter(feed), stop):
                run.take(receipt, feed.fractions.pop(receipt.shard, None))
                watch(run.state)
            if not stop.is_set():
                run.finish()
        finally:
            run.record()
    if stop.is_set():
        prompts = run.state.counts["prompts"]
        raise stop.interrupted(f"stopped; {prompts:,} prompts are finished in {shown(folder.path)}")
    return run.manifest


def begun(folder: Folder, manifest: Manifest, *, overwrite: bool) -> Manifest:
    """The manifest of the run that goes on here, or ``manifest`` in a folder that is made ready for it."""
    there = read_manifest(folder.manifest)
    if there is None:
        _require_empty(folder.path)
    elif overwrite or there["status"] == CLEARING:
        write_manifest(folder.manifest, there | {"status": CLEARING})
        Folder(folder.path, there["settings"]["format"]).clear()
    elif different := differences(there, manifest):
        raise ResultsError(
            f"{shown(folder.path)} holds a dataset that differs in {'; '.join(different)}; choose another folder, or "
            "replace it with --overwrite"
        )
    else:
        return there | {"checked": there.get("checked", False) and manifest["checked"]}  # the whole of it, or not
    write_manifest(folder.manifest, manifest)
    return manifest


def _require_empty(path: Path) -> None:
    others = sorted(entry.name for entry in path.iterdir() if entry.name != LOCK and not is_leftover(entry))
    if others:
        raise ResultsError(
            f"{shown(path)} holds no dataset but {', '.join(map(repr, others[:3]))}; choose another folder"
        )


class _Run:
    """One run over a dataset: what was finished before, and what it adds."""

    def __init__(self, folder: Folder, manifest: Manifest) -> None:
        self.folder, self.manifest, self.run_id = folder, manifest, secrets.token_hex(8)
        folder.prepare(self.run_id)
        self.was_merged, self.wrong = folder.is_merged, folder.unmerge(self.run_id, manifest.get("files", {}))
        self.was_merged &= RECEIPTS not in self.wrong
        self.finished = folder.receipts()
        self.whole = {shard for shard, receipt in self.finished.items() if folder.holds(receipt)}
        broken = {shard: receipt for shard, receipt in self.finished.items() if shard not in self.whole}
        self.before = {shard: receipt for shard, receipt in broken.items() if folder.holds_part(receipt)}
        self.state = State.after(self.finished[shard] for shard in self.whole)
        self._started, self._began, self._taken, self._ended = time.perf_counter(), now(), 0, False
        if self.wrong or (broken and manifest["status"] == COMPLETE):
            kept = {key: value for key, value in manifest.items() if key != "files" or not self.wrong}
            self.manifest = kept | {"status": RUNNING}
            write_manifest(folder.manifest, self.manifest)

    def tell_what_was(self, note: Callable[[str], object]) -> None:
        """Say that this run goes on with another's work, and what of that was damaged."""
        for name, reason in self.wrong.items():
            todo = (
                "parts without a receipt are measured again" if name == RECEIPTS else "it is made again, with its kind"
            )
            note(f"{name} {reason}; {todo}")
        for shard in sorted(set(self.finished) - self.whole):
            if shard not in self.before:
                note(f"part {shard} was damaged after it was written; it is measured again")
            elif not self.wrong:
                note(f"the small tables of part {shard} were damaged; they are made again")
        if self.whole:
            prompts, parts = self.state.counts["prompts"], len(self.whole)
            note(f"going on after {prompts:,} prompts in {parts:,} parts that were finished before")

    def take(self, receipt: Receipt, fraction: float | None) -> None:
        """Count a shard that this run finished."""
        self.finished[receipt.shard] = receipt
        self.state.add(receipt, fraction)
        self._taken += 1

    def finish(self) -> None:
        """Merge the pieces and call the dataset complete, unless it is so already."""
        if self._taken or self.manifest["status"] != COMPLETE:
            release_memory()
            files = merge(self.folder, self.run_id, self.finished)
            self.manifest["files"] = self.manifest.get("files", {}) | files
            self.folder.drop_orphans(self.finished)
            self._note(status=COMPLETE)
            with suppress(OSError):
                sync_folder(self.folder.path)
        self._ended = True
        self._clean()

    def record(self) -> None:
        """Keep what is known of a run that ended before its time; a disk that is full keeps the old manifest."""
        if self._ended:
            return
        if self.manifest["status"] == COMPLETE:
            self._clean()
        elif self.folder.unfinished.exists():
            with suppress(ResultsError):
                self._note(status=RUNNING)

    def _clean(self) -> None:
        with suppress(OSError):
            shutil.rmtree(self.folder.unfinished)

    def _note(self, *, status: str) -> None:
        seconds = round(time.perf_counter() - self._started, 3)
        rows = self.state.counts["rows"] - self.state.earlier["rows"]
        session = {"started": self._began, "seconds": seconds, "shards": self._taken, "rows": rows}
        times = self.manifest["times"]
        self.manifest = self.manifest | {
            "status": status,
            "counts": self.state.counts | {"parts": len(self.finished)},
            "times": times
            | {
                "finished": now() if status == COMPLETE else None,
                "measured_s": round(self.state.measured_s, 3),
                "sessions": [*times["sessions"], session],
            },
        }
        write_manifest(self.folder.manifest, self.manifest)
