"""A crew of processes on this machine: shards go out, receipts come back, and a process that dies is replaced.

A worker is handed a second shard while it measures the first, so that it never waits. Nothing is asked of the user's
script (no fork, no second import of it), and no process outlives the coordinator, however that ends.
"""

import os
import pickle
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from queue import Empty, SimpleQueue

from engine.crews.seat import Message, Seat
from engine.datasets.orders import Order, Receipt
from engine.datasets.shards import Shard
from engine.datasets.worker import Worker
from engine.errors import WorkerError

SHARDS_PER_WORKER = 2
MOST_DEATHS = 3
PATIENCE_S = 600.0
"""How long a worker may take for its current pass, and to write what it has measured, when the run is stopped."""
GLANCE_S = 0.2
"""How often the stop event is looked at while no worker says anything."""


def receipts(
    order: Order,
    shards: Iterable[Shard],
    *,
    num_workers: int,
    stop: threading.Event,
    make_worker: Callable[[Order], Worker] = Worker.from_order,
    note: Callable[[str], object] = lambda line: None,
) -> Iterator[Receipt]:
    """One receipt for every shard, in any order, from ``num_workers`` processes; ``make_worker`` goes by its name.

    ``note`` is told in a line of every process that died. Errors: the ``ImpactError`` of a worker; ``WorkerError``
    when a shard, or loading the model, has cost three processes; ``RuntimeError`` with the traceback of a defect.
    """
    crew = _Crew(orders_for(order, num_workers), iter(shards), make_worker, note)
    try:
        while crew.at_work(stop):
            yield from crew.answer()
    finally:
        crew.close()


def orders_for(order: Order, num_workers: int) -> list[Order]:
    """The order of each worker: the GPUs are dealt out in turn, the cores shared unless ``threads`` is given."""
    threads = order.threads or max(1, _num_cores() // num_workers)
    num_cards = _num_cards(order.device) if num_workers > 1 and order.device_map is None else 0
    devices = [f"cuda:{index % num_cards}" if num_cards > 1 else order.device for index in range(num_workers)]
    checked = replace(order, check=False)  # on this machine, by the process that began the run
    return [replace(checked, device=device, threads=threads) for device in devices]


def _num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _num_cards(device: str) -> int:
    """GPUs that CUDA offers, if the device is left open."""
    if device not in ("auto", "cuda"):
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


class _Crew:
    """Who has which shard, and what to do when an answer comes."""

    def __init__(
        self,
        orders: list[Order],
        shards: Iterator[Shard],
        make_worker: Callable[[Order], Worker],
        note: Callable[[str], object],
    ) -> None:
        self._messages: SimpleQueue[Message] = SimpleQueue()
        self._seats = [Seat(f"worker {n}", order, make_worker, self._messages) for n, order in enumerate(orders, 1)]
        self._shards = shards
        self._again: deque[Shard] = deque()
        self._deaths: Counter[int] = Counter()
        self._note = note
        self._deadline: float | None = None

    def at_work(self, stop: threading.Event) -> bool:
        """Hand out what can be handed out, or see to it that everybody stops; False when nothing is under way."""
        if not stop.is_set():
            self._hand_out()
        elif self._deadline is None:
            self._deadline = time.monotonic() + PATIENCE_S
            for seat in self._seats:
                seat.stop()
        elif time.monotonic() > self._deadline:
            return False
        return any(seat.shards for seat in self._seats)

    def answer(self) -> Iterator[Receipt]:
        """Wait a moment for one message and act on it."""
        try:
            seat, word, content = self._messages.get(timeout=GLANCE_S)
        except Empty:
            return
        if word == "ready":
            seat.begin()
        elif word == "receipt":
            receipt = pickle.loads(content)
            del seat.shards[receipt.shard]
            yield receipt
        elif word == "mistake":
            raise pickle.loads(content)
        elif word == "defect":
            raise RuntimeError(f"a worker failed:\n{pickle.loads(content)}")
        else:
            self._bury(seat)

    def close(self) -> None:
        """Leave no process behind."""
        for seat in self._seats:
            seat.kill()
        for seat in self._seats:
            seat.clear()

    def _hand_out(self) -> None:
        """A shard for whoever has least to do, as long as there are shards and somebody has room."""
        while True:
            seat = min(self._seats, key=lambda seat: (self._load(seat), not seat.taken))
            load = self._load(seat)
            if self._again and load == 0:
                seat.give(self._again.popleft())
            elif load < SHARDS_PER_WORKER and (shard := next(self._shards, None)) is not None:
                seat.give(shard)
            else:
                return

    def _load(self, seat: Seat) -> int:
        """Shards at a seat; one that was there when a worker died is alone, so that the next death has one cause."""
        return SHARDS_PER_WORKER if any(self._deaths[index] for index in seat.shards) else len(seat.shards)

    def _bury(self, seat: Seat) -> None:
        """Take the shards of a worker that died back, or give up."""
        lost, was_ready = list(seat.shards.values()), seat.ready
        how = seat.clear()
        if self._deadline is not None:
            return
        if not was_ready and seat.failed_starts == MOST_DEATHS:
            raise WorkerError(f"{_thrice(how, 'loading the model')}use fewer workers or a machine with more memory")
        self._deaths.update(shard.index for shard in lost if was_ready)
        for shard in lost:
            if self._deaths[shard.index] == MOST_DEATHS:
                advice = "use fewer workers or fewer rows per pass, or leave these rows out"
                raise WorkerError(_thrice(how, f"measuring {_rows([shard])}") + advice)
        self._again.extend(lost)
        self._note(f"{seat.name} {how}" + (f"; {_rows(lost)} are measured again by a new one" if lost else ""))


def _thrice(how: str, doing: str) -> str:
    return f"three workers died while {doing} (the last one {how}), often a sign of too little memory: "


def _rows(shards: list[Shard]) -> str:
    """Which rows of the input the shards hold."""
    return " and ".join(f"rows {shard.entries[0].row} to {shard.entries[-1].row}" for shard in shards)
