"""The unit of work: consecutive rows of the input that are measured, written and, after a stop, skipped together.

Where a shard ends depends on the input and the model's shape alone, so a run that was stopped cuts the same shards
again, whoever works on them.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from engine.datasets.orders import Receipt
from engine.inputs.entries import Entry

MOST_PROMPTS = 1024
ROWS_PER_SHARD = 1 << 21
"""Rows of the impact table, about: 16 MB on disk, some 200 MB while they are laid out."""
CHARACTERS_PER_TOKEN = 4
"""A rough guess, as long as nothing is tokenized; a token id counts as much."""


@dataclass(frozen=True)
class Shard:
    """Rows of the input; ``digest`` tells whether another shard holds the same."""

    index: int
    entries: tuple[Entry, ...]
    digest: str
    before: Receipt | None = None
    """Of a shard whose part of the impact table is there, and whose small tables alone are to be made again."""


def cut_shards(entries: Iterable[Entry], *, rows_per_token: int) -> Iterator[Shard]:
    """The shards of ``entries``, in order, when a token of a prompt gives ``rows_per_token`` rows of the table."""
    most_characters = CHARACTERS_PER_TOKEN * ROWS_PER_SHARD // rows_per_token
    waiting: list[Entry] = []
    size = index = 0
    for entry in entries:
        more = _size(entry)
        if waiting and (len(waiting) == MOST_PROMPTS or size + more > most_characters):
            yield _shard(index, waiting)
            waiting, size, index = [], 0, index + 1
        waiting.append(entry)
        size += more
    if waiting:
        yield _shard(index, waiting)


def _size(entry: Entry) -> int:
    """Characters that the prompt has, or is worth."""
    prompt = _listed(entry.prompt)
    if isinstance(prompt, str):
        return len(prompt)
    return CHARACTERS_PER_TOKEN * len(prompt) if isinstance(prompt, list | tuple) else 1


def _shard(index: int, entries: list[Entry]) -> Shard:
    digest = hashlib.sha256()
    for entry in entries:
        facts = (entry.row, entry.prompt_id, _listed(entry.prompt), sorted(entry.columns.items()), entry.defect)
        digest.update(repr(facts).encode("utf-8", "backslashreplace"))
    return Shard(index, tuple(entries), digest.hexdigest())


def _listed(prompt: object) -> object:
    """Token ids as a list, whatever they came in: an array's own text leaves numbers out."""
    ids = prompt["input_ids"] if isinstance(prompt, Mapping) and "input_ids" in prompt else prompt
    ids = ids.tolist() if hasattr(ids, "tolist") else ids
    return ids[0] if isinstance(ids, list) and len(ids) == 1 and isinstance(ids[0], list) else ids
