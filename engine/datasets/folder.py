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

import polars as pl

from engine.datasets.manifest import MANIFEST
from engine.datasets.orders import Receipt
from engine.datasets.receipts import RECEIPT, Facts, damage, is_as, receipt_in, receipts_in, sealed
from engine.errors import ResultsError
from engine.files import explaining, is_leftover, shown

RECEIPTS = "receipts.parquet"
IMPACTS, UNFINISHED = "impacts", ".unfinished"
MERGED = ("prompts", "tokens", "rejected")
FORMS = ("parquet", "csv")


@dataclass(frozen=True)
class Folder:
    """The paths in a dataset's folder whose impact tables have the given ``form``."""

    path: Path
    form: str = "parquet"

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ResultsError(f"{shown(self.path)} is of form {self.form!r:.60}; a dataset's is {' or '.join(FORMS)}")

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

    def parts(self, *, verify: bool = False) -> list[Path]:
        """The parts of the impact table that have a receipt.

        Raises ``ResultsError`` for one that is missing, or not of the size that was written; with ``verify``, for one
        that holds other bytes.
        """
        receipts = self.receipts()
        facts = [each for shard in sorted(receipts) for each in receipts[shard].files.items()]
        return [self.whole(name, each, verify) for name, each in facts if name.startswith(IMPACTS)]

    @property
    def num_bytes(self) -> int:
        """Bytes of the parts, as their receipts say."""
        files = (facts for receipt in self.receipts().values() for facts in receipt.files.items())
        return sum(size for name, (size, _) in files if name.startswith(IMPACTS))

    def whole(self, name: str, facts: Facts, verify: bool) -> Path:
        """Where a file of this folder lies. Raises ``ResultsError`` unless it is as it was written."""
        path = self.path / name
        if (wrong := damage(path, facts, thoroughly=verify)) is not None:
            raise ResultsError(f"{shown(path)} {wrong}; run the dataset's command again to make it once more")
        return path

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
        text = sealed(json.dumps(asdict(receipt)))
        self.put(run_id, self.piece("receipt", receipt.shard).with_suffix(".json"), lambda path: path.write_text(text))

    def receipts(self) -> dict[int, Receipt]:
        """The receipts of finished shards."""
        return receipts_in(self.path / RECEIPTS) | self._loose_receipts()

    def _loose_receipts(self) -> dict[int, Receipt]:
        found = [receipt_in(path) for path in self.unfinished.glob(RECEIPT)]
        return {each.shard: each for each in found if each is not None}

    def holds(self, receipt: Receipt) -> bool:
        """Whether the files of a finished shard are there and unchanged; pieces that were merged need not be."""
        names = receipt.files if not self.is_merged else filter(_is_part, receipt.files)
        return all(is_as(self.path / name, receipt.files[name]) for name in names)

    def holds_part(self, receipt: Receipt) -> bool:
        """The same of its part of the impact table alone."""
        return all(is_as(self.path / name, receipt.files[name]) for name in filter(_is_part, receipt.files))

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
                if old.is_symlink():
                    old.unlink()
                elif old.is_dir():
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
        with writing(self.path):
            for path in self.pieces(IMPACTS):
                if int(path.stem.rpartition("-")[2]) not in receipts:
                    path.unlink()

    def unmerge(self, run_id: str, files: Mapping[str, Facts]) -> dict[str, str]:
        """Take a complete dataset apart if one of these, its merged tables, is not as it was written.

        What is wrong with each comes back by its name. Receipts lie in pieces again, as far as they can be read, and
        the small tables are to be made once more. Killed in the middle, it is done again by the next run.
        """
        wrong = {name: damage(self.path / name, facts, thoroughly=True) for name, facts in files.items()}
        found = {name: reason for name, reason in wrong.items() if reason is not None}
        try:
            receipts = receipts_in(self.path / RECEIPTS)
        except ResultsError:
            receipts = {}
            found.setdefault(RECEIPTS, "was damaged")
        if not found:
            return {}
        missing = set() if RECEIPTS in found else set(receipts) - set(self._loose_receipts())
        for shard in missing:
            self.put_receipt(run_id, receipts[shard])
        with writing(self.path):
            (self.path / RECEIPTS).unlink(missing_ok=True)
            sync_folder(self.path)
        return found


def _is_part(name: str) -> bool:
    return name.startswith(f"{IMPACTS}/")


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
