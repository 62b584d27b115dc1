"""Receipts as they lie in a folder: read strictly, because they say which files are relied on."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from engine.datasets.orders import Receipt
from engine.errors import ResultsError
from engine.files import shown

Facts = tuple[int, str]
"""The size of a file in bytes, and its SHA-256."""
RECEIPT = "receipt-*.json"
NO_RECEIPT = (ValueError, TypeError, KeyError, AttributeError, RecursionError)
"""What words that are no receipt raise when they are read as one."""
OWN_FILES = (r"impacts/part-{0:06}\.(parquet|csv)", r"\.unfinished/(prompts|tokens|rejected)-{0:06}\.parquet")
"""What a shard's receipt may name: nothing that lies elsewhere, and nothing of another shard."""


def facts_of(path: Path) -> Facts:
    """The size and the digest of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), digest


def damage(path: Path, facts: Facts, *, thoroughly: bool) -> str | None:
    """What is wrong with a file that was written with that size and digest; None if nothing is.

    Its bytes are read where ``thoroughly`` asks for it: one to two gigabytes a second. A link is no file of ours.
    """
    if path.is_symlink():
        return "is a link"
    if not path.is_file():
        return "is missing"
    if path.stat().st_size != facts[0]:
        return f"has {path.stat().st_size:,} bytes, {facts[0]:,} were written"
    if thoroughly and facts_of(path) != tuple(facts):
        return "holds other bytes than were written"
    return None


def is_as(path: Path, facts: Facts) -> bool:
    """Whether the file is there as it was written."""
    return damage(path, facts, thoroughly=True) is None


def receipt_in(path: Path) -> Receipt | None:
    """The receipt of a shard; None for a file that is none, whose shard is then done again."""
    try:
        text, _, seal = path.read_text().partition("\n")
        return _receipt(text) if seal == _seal(text) else None
    except (OSError, *NO_RECEIPT):
        return None


def sealed(text: str) -> str:
    """What is written of a receipt: itself, and a digest in a line of its own."""
    return f"{text}\n{_seal(text)}"


def receipts_in(path: Path) -> dict[int, Receipt]:
    """The receipts of a complete dataset, by their shards. Raises ``ResultsError`` for a table that was damaged."""
    if not path.is_file():
        return {}
    try:
        with path.open("rb") as file:
            texts = pl.read_parquet(file)["receipt"].to_list()
        return {receipt.shard: receipt for receipt in map(_receipt, texts)}
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, *NO_RECEIPT) as error:
        raise ResultsError(
            f"{shown(path)} was damaged after it was written; run the dataset's command again to make it once more"
        ) from error


def _seal(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _receipt(text: str) -> Receipt:
    """Raises ``ValueError``, ``TypeError`` or ``KeyError`` for what is no receipt."""
    found = Receipt(**json.loads(text))
    numbers = [found.shard, found.halvings, *found.counts.values()]
    if not all(type(number) is int and number >= 0 for number in numbers) or not isinstance(found.digest, str):
        raise ValueError("a receipt holds numbers from 0 on, and a digest")
    _require_own(found.shard, found.files)
    return found


def _require_own(shard: int, files: Mapping[str, Facts]) -> None:
    own = "|".join(OWN_FILES).format(shard)
    for name, (size, digest) in files.items():
        if not re.fullmatch(own, name) or type(size) is not int or not isinstance(digest, str):
            raise ValueError(f"a receipt names {name!r}, which is none of its files")
