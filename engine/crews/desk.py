"""The desk that shards lie on while actors measure them, and what comes back from there. It needs no Ray by itself."""

import asyncio
from collections import Counter
from dataclasses import dataclass

from engine.datasets.orders import Receipt
from engine.errors import ImpactError


@dataclass(frozen=True)
class Outcome:
    """What became of the shard at a place of the desk. Without a receipt or an error it was dropped: for a stop, or
    because of the many actors that died over it.
    """

    place: int
    died: int = 0
    """Actors that died over the shard before."""
    receipt: Receipt | None = None
    error: ImpactError | str | None = None
    """A user's error itself; the traceback's text of a defect."""


class Desk:
    """An actor where shards lie in numbered places until their receipts are in.

    Whoever asks for a place again gets the same shard again, so Ray may repeat any task.
    """

    def __init__(self) -> None:
        self._shards: list[bytes | None] = []
        self._attempts: Counter[int | str] = Counter()
        self._ended = False
        self._stopped = asyncio.Event()
        self._news = asyncio.Condition()

    async def lay(self, shard: bytes) -> None:
        """One more shard, in the next place."""
        async with self._news:
            self._shards.append(shard)
            self._news.notify_all()

    async def end(self, *, stop: bool = False) -> None:
        """No shard follows; with ``stop``, those that lie here are not handed out and the actors stop measuring."""
        async with self._news:
            self._ended = True
            if stop:
                self._stopped.set()
            self._news.notify_all()

    async def take(self, place: int) -> bytes | None:
        """The shard of a place, as soon as it lies there; empty if it is done, None if there will be none."""
        async with self._news:
            await self._news.wait_for(lambda: place < len(self._shards) or self._ended)
        known = place < len(self._shards) and not self._stopped.is_set()
        return (self._shards[place] or b"") if known else None

    async def begin(self, work: int | str) -> int:
        """How often this work has begun, this time included."""
        self._attempts[work] += 1
        return self._attempts[work]

    async def finish(self, work: int | str) -> None:
        """The work is done; its shard need not be kept."""
        self._attempts.pop(work, None)
        if isinstance(work, int):
            self._shards[work] = None

    async def stopped(self) -> None:
        """Returns when the actors should stop."""
        await self._stopped.wait()

    async def gone(self) -> None:
        """Never returns: who asks gets an error when the desk is no more."""
        await asyncio.Event().wait()
