"""Ids that came before: a prompt that bears one is turned away, or its rows could not be told from the others'."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice

import numpy as np
from jaxtyping import Bool, Int

from engine.inputs.entries import Entry, Id

CHUNK = 4096


def with_unique_ids(entries: Iterable[Entry]) -> Iterator[Entry]:
    """The entries; one whose id has come before gets a defect that says so."""
    seen, waiting = _Seen(), iter(entries)
    while chunk := list(islice(waiting, CHUNK)):
        numbers = np.array([_number(entry.prompt_id) for entry in chunk], dtype=np.int64)
        repeated = seen.add(numbers)
        for entry, again in zip(chunk, repeated.tolist(), strict=True):
            bad = again and entry.defect is None
            yield replace(entry, defect=f"the id {entry.prompt_id!r:.80} has come before") if bad else entry


def _number(prompt_id: Id | None) -> int:
    return prompt_id if isinstance(prompt_id, int) else hash(prompt_id)


class _Seen:
    """64-bit hashes in sorted runs, each at least twice as long as the next: 8 bytes an id, and few runs to search."""

    def __init__(self) -> None:
        self._runs: list[Int[np.ndarray, " n"]] = []

    def add(self, numbers: Int[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """Whether each number came before, here or earlier in ``numbers``."""
        distinct, first, place = np.unique(numbers, return_index=True, return_inverse=True)
        known = np.zeros(len(distinct), dtype=bool)
        for run in self._runs:
            known |= run[np.minimum(np.searchsorted(run, distinct), len(run) - 1)] == distinct
        self._keep(distinct[~known])
        later = np.ones(len(numbers), dtype=bool)
        later[first] = False
        return later | known[place]

    def _keep(self, new: Int[np.ndarray, " n"]) -> None:
        if not len(new):
            return
        self._runs.append(new)
        while len(self._runs) > 1 and len(self._runs[-2]) < 2 * len(self._runs[-1]):
            last = self._runs.pop()
            self._runs[-1] = np.union1d(self._runs[-1], last)
