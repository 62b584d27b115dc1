"""What is left to do: the shards of the input, less those that are finished."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field, replace

from engine.datasets.orders import Receipt
from engine.datasets.shards import Shard
from engine.datasets.stopping import InputStopped, Stop
from engine.errors import ResultsError


@dataclass
class Feed:
    """The shards that are left to do, each cut from the input when it is asked for.

    ``finished`` are the receipts of earlier runs, ``whole`` those whose files are as they were. Raises
    ``ResultsError`` as soon as the input proves to be another than theirs.
    """

    shards: Iterable[Shard]
    finished: Mapping[int, Receipt]
    whole: Set[int]
    before: Mapping[int, Receipt]
    """Of those that are not whole, whose part of the impact table is so."""
    is_merged: bool
    """Whether the dataset is at its end, so that no further shard can belong to it."""
    fraction: Callable[[], float | None]
    """How much of the input has been read."""
    stop: Stop = field(default_factory=Stop)
    """Ends the input when it is set while more of it is waited for."""
    fractions: dict[int, float | None] = field(default_factory=dict)
    """The same after each shard that was given out."""
    num_entries: int = 0

    def __iter__(self) -> Iterator[Shard]:
        """What is new waits until the last finished shard has proved to be the same: a few shards may have to."""
        last, end, waiting = -1, max(self.finished, default=-1), []
        for shard in self._read():
            self._compare(shard)
            self.num_entries, last = self.num_entries + len(shard.entries), shard.index
            if shard.index not in self.whole:
                self.fractions[shard.index] = self.fraction()
                if shard.index in self.finished:
                    yield replace(shard, before=self.before.get(shard.index))
                else:
                    waiting.append(shard)
            if last >= end:
                yield from waiting
                waiting = []
        if end > last and not self.stop.is_set():
            raise _other_input(f"it ends after {self.num_entries} rows")

    def _read(self) -> Iterator[Shard]:
        """The shards of the input, up to where the run was stopped."""
        shards = iter(self.shards)
        while True:
            try:
                with self.stop.reading():
                    shard = next(shards, None)
            except InputStopped:
                return
            if shard is None:
                return
            yield shard

    def _compare(self, shard: Shard) -> None:
        receipt = self.finished.get(shard.index)
        if receipt is None and self.is_merged:
            raise _other_input(f"it goes on after {self.num_entries} rows")
        if receipt is not None and receipt.digest != shard.digest:
            raise _other_input(f"rows {shard.entries[0].row} to {shard.entries[-1].row} are not what they were")


def _other_input(difference: str) -> ResultsError:
    return ResultsError(
        f"this dataset was begun with another input ({difference}); give the same input, choose another folder, or "
        "replace the dataset with --overwrite"
    )
