"""The folder of a dataset: where everything lies, who may write, and how a file gets there.

    manifest.json                     what made the dataset, and whether it is complete
    impacts/part-000000.parquet ...   the impact tables, a part for each shard
    prompts, tokens, rejected         one file each, once the dataset is complete
    receipts.parquet                  what each part holds, and the digests of its files and its prompts
    .unfinished/                      until then: the same in pieces, with a receipt for every finished shard

A file is written under ``.unfinished/RUN/``, synced, and renamed. The receipt of a shard comes last: a shard that has
one is finished. The first thing a run does is to take the folders of earlier runs away, so that an orphan of theirs
cannot put anything into place any more.
"""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import filelock
import polars as pl

from engine.datasets.manifest import MANIFEST
from engine.datasets.orders import Receipt
from engine.errors import ResultsError
from engine.files import explaining, is_leftover, shown

RECEIPTS, LOCK = "receipts.parquet", ".lock"
IMPACTS, UNFINISHED = "impacts", ".unfinished"
MERGED = ("prompts", "tokens", "rejected")
FORMS = ("parquet", "csv")


@dataclass(frozen=True)
class Folder:
    """The paths in a dataset's folder whose impact tables have the given ``form``."""

    path: Path
    form: str = "parquet"

    @property
    def manifest(self) -> Path:
        return self.path / MANIFEST

    @property
    def unfinished(self) -> Path:
        return self.path / UNFINISHED

    def table(self, name: str) -> Path:
        """Where a merged table lies."""
        return self.path / f"{name}.{self.form}"

    def piece(self, name: str, shard: int) -> Path:
        """Where a shard's rows of a table lie: those of the impact table for good, others until they are merged."""
        if name == IMPACTS:
            return self.path / IMPACTS / f"part-{shard:06}.{self.form}"
        return self.unfinished / f"{name}-{shard:06}.parquet"

    def pieces(self, name: str) -> list[Path]:
        """The pieces of a table that are there, in the order of the shards; nothing else that lies beside them."""
        place, stem = (self.path / IMPACTS, "part") if name == IMPACTS else (self.unfinished, name)
        form = self.form if name == IMPACTS else "parquet"
        found = (re.fullmatch(rf"{stem}-(\d{{6,}})\.{form}", path.name) for path in place.glob(f"*.{form}"))
        return [place / match[0] for match in sorted(filter(None, found), key=lambda match: int(match[1]))]

    def parts(self) -> list[Path]:
        """The parts of the impact table that have a receipt. Raises ``ResultsError`` when one of them is missing."""
        receipts = self.receipts()
        names = [name for shard in sorted(receipts) for name in receipts[shard].files if name.startswith(IMPACTS)]
        for path in (found := [self.path / name for name in names]):
            if not path.is_file():
                raise ResultsError(f"{shown(path)} is missing; run the dataset's command again to make it once more")
        return found

    def stage(self, run_id: str) -> Path:
        """Where a run writes what is not finished."""
        return self.unfinished / run_id

    def put(self, run_id: str, target: Path, write: Callable[[Path], object]) -> tuple[str, tuple[int, str]]:
        """Write a file, sync it and put it into place; its path in this folder, its size and its SHA-256."""
        staged = self.stage(run_id) / target.name
        with writing(target):
            write(staged)
            with staged.open("rb+") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                size = file.tell()
                os.fsync(file.fileno())
            staged.replace(target)
        return target.relative_to(self.path).as_posix(), (size, digest)

    def put_receipt(self, run_id: str, receipt: Receipt) -> None:
        """Make a shard finished: what its files hold is on the disk before its receipt is."""
        with writing(self.unfinished):
            for place in (self.path / IMPACTS, self.unfinished):
                sync_folder(place)
        text = json.dumps(asdict(receipt))
        self.put(run_id, self.piece("receipt", receipt.shard).with_suffix(".json"), lambda path: path.write_text(text))

    def receipts(self) -> dict[int, Receipt]:
        """The receipts of finished shards."""
        found = [_parsed(path) for path in self.unfinished.glob("receipt-*.json")]
        return _from_table(self.path / RECEIPTS) | {each.shard: each for each in found if each is not None}

    def holds(self, receipt: Receipt) -> bool:
        """Whether the files of a finished shard are there and unchanged; pieces that were merged need not be."""
        for name, (size, digest) in receipt.files.items():
            path = self.path / name
            if not (path.parent == self.unfinished and self.is_merged) and not _is_as(path, (size, digest)):
                return False
        return True

    @property
    def is_merged(self) -> bool:
        """Whether the pieces of the small tables are one file each; the table of receipts is written after them."""
        return (self.path / RECEIPTS).exists()

    def prepare(self, run_id: str) -> None:
        """Make the folders, and take those of earlier runs away."""
        with writing(self.path):
            (self.path / IMPACTS).mkdir(exist_ok=True)
            self.unfinished.mkdir(exist_ok=True)
            for old in self.unfinished.iterdir():
                if old.is_dir():
                    shutil.rmtree(old)
            for old in filter(is_leftover, self.path.iterdir()):
                old.unlink()
            self.stage(run_id).mkdir()
            sync_folder(self.path)

    def clear(self) -> None:
        """Remove what a dataset consists of, and nothing else; the manifest stays until another takes its place."""
        with writing(self.path):
            shutil.rmtree(self.unfinished, ignore_errors=True)
            for path in (*self.pieces(IMPACTS), *map(self.table, MERGED), self.path / RECEIPTS):
                path.unlink(missing_ok=True)

    def drop_orphans(self, receipts: Container[int]) -> None:
        """Remove parts that were put into place by a run which did not live to write their receipts."""
        for path in self.pieces(IMPACTS):
            if int(path.stem.rpartition("-")[2]) not in receipts:
                path.unlink()

    def require_merged(self, files: Mapping[str, tuple[int, str]]) -> None:
        """Raise ``ResultsError`` unless the merged tables are as they were written."""
        for name, facts in files.items():
            if not _is_as(self.path / name, facts):
                raise ResultsError(
                    f"{shown(self.path / name)} is missing or was changed; bring it back, or make the dataset again "
                    "with --overwrite"
                )


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the folder, which is made if need be, for this process alone. Raises ``ResultsError`` if another does."""
    with explaining(path):
        path.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path / LOCK, timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise ResultsError(
                f"{shown(path)} is being written by another run; wait for it, or choose another folder"
            ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what polars or the system raise while ``path`` is written into a ``ResultsError``."""
    with explaining(path):
        try:
            yield
        except pl.exceptions.PolarsError as error:
            raise OSError(None, " ".join(str(error).split())[:200]) from error


def sync_folder(path: Path) -> None:
    """Make renames in this folder last, where the system can."""
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno != errno.EINVAL:  # some network file systems know no such thing
                raise
        finally:
            os.close(handle)


def _is_as(path: Path, facts: tuple[int, str]) -> bool:
    """Whether the file is there with that size and SHA-256."""
    return path.is_file() and path.stat().st_size == facts[0] and facts_of(path) == tuple(facts)


def facts_of(path: Path) -> tuple[int, str]:
    """The size and the SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), digest


def _parsed(path: Path) -> Receipt | None:
    """A receipt; None for a file that is none, whose shard is then done again."""
    try:
        return _receipt(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None


def _receipt(words: Mapping[str, Any]) -> Receipt:
    """The receipt of these words. Raises ``ValueError``, ``TypeError`` and ``AttributeError`` for what is none."""
    found = Receipt(**words)
    sizes = [found.shard, *found.counts.values(), *(size for size, _ in found.files.values())]
    names = [Path(name) for name in found.files]
    if not all(type(size) is int and size >= 0 for size in sizes) or not isinstance(found.digest, str):
        raise ValueError("it counts in what is no number")
    if any(name.is_absolute() or ".." in name.parts for name in names):
        raise ValueError("it names a file outside of the dataset")
    return found


def _from_table(path: Path) -> dict[int, Receipt]:
    if not path.is_file():
        return {}
    try:
        with path.open("rb") as file:
            rows = pl.read_parquet(file).select("shard", "receipt").rows()
        return {shard: _receipt(json.loads(text)) for shard, text in rows}
    except (
        *(pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError),
        *(ValueError, TypeError, AttributeError, RecursionError),
    ) as error:
        raise ResultsError(
            f"{shown(path)} was damaged after it was written; bring it back, or make the dataset again with --overwrite"
        ) from error
