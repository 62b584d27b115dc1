"""The crew on a Ray cluster: actors of Ray Data measure the shards, this process hands them out and collects receipts.

A shard stays with this process until its receipt is here. An actor that dies is replaced by Ray, which repeats the
shard; should the whole line of work break, a new one starts with the shards that are still without a receipt.
"""

import itertools
import pickle
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from engine.crews import connection
from engine.crews.desk import Outcome
from engine.datasets.shards import Shard
from engine.datasets.worker import Order, Receipt, Worker
from engine.errors import ImpactError, WorkerError

MOST_LINES = 3
"""So many lines of work may break in a row without a receipt."""
AHEAD = 2
"""Shards that wait for an actor, at most."""
GLANCE_S = 0.1
"""How often the stop event is looked at while no outcome comes."""
START_S = 300.0
"""How long the desk may take to start or to answer."""
PATIENCE_S = 600.0
"""How long actors may take for their current pass, and to write what they have measured, when they are to stop."""
CLOSE_S = 5.0


def receipts(
    order: Order,
    shards: Iterable[Shard],
    *,
    num_workers: int | None,
    stop: threading.Event,
    make_worker: Callable[[Order], Any] = Worker.from_order,
    address: str | None = None,
    note: Callable[[str], object] = lambda _: None,
) -> Iterator[Receipt]:
    """Receipts as they come, one for every shard; without an address, from a cluster that lives as long as this.

    Without a number there are as many workers as the cluster has GPUs or, for a CPU, cores for. ``note`` is told what
    a user may want to know. Raises ImpactError if there is no Ray or no cluster, what a worker raised of that kind, and
    RuntimeError with the traceback of a worker's defect.
    """
    num_cpus = (order.threads or 1) * num_workers if num_workers else None
    with connection.connected(address, num_cpus=num_cpus) as ray:
        if order.threads is None:  # a machine of our own is shared out, of a cluster of others a worker takes one core
            cores = connection.total(ray, "CPU") if address is None else 1
            order = replace(order, threads=max(1, cores // (num_workers or cores)))
        yield from _received(_crew(ray, order, make_worker, num_workers, note), iter(shards), stop)


@dataclass(frozen=True)
class _Crew:
    ray: Any
    begin: Callable[[Any], tuple[Any, threading.Thread]]
    size: int
    note: Callable[[str], object]


def _crew(
    ray: Any, order: Order, make_worker: Callable[[Order], Any], num_workers: int | None, note: Callable[[str], object]
) -> _Crew:
    """As many workers as were asked for, or as the cluster has room for."""
    from engine.crews.actors import begin

    num_cpus = order.threads or 1
    on_gpu = order.device.startswith(("auto", "cuda")) and connection.total(ray, "GPU") > 0
    room = connection.room(ray, num_cpus=num_cpus, on_gpu=on_gpu)
    size = num_workers or max(1, room)
    if size > room:
        note(f"the Ray cluster has room for {room} of {size} workers; the others start when there is more")
    # Ray shows an actor its own GPU alone, under number 0.
    order = replace(order, device="cuda") if on_gpu else order
    sizes: Any = {"num_workers": size, "num_cpus": num_cpus, "num_gpus": int(on_gpu)}
    return _Crew(ray, partial(begin, order=order, make_worker=make_worker, **sizes), size, note)


def _received(crew: _Crew, shards: Iterator[Shard], stop: threading.Event) -> Iterator[Receipt]:
    """Receipts from one line of work, or from several if they break."""
    fruitless = 0
    while True:
        with closing(_Line(crew, shards)) as line:
            yield from line.receipts(stop)
        if stop.is_set() or (line.exhausted and not line.open):
            return
        why = line.broken or "it ended early"
        fruitless = 0 if line.num_receipts else fruitless + 1
        missing = list(line.open.values())
        if fruitless == MOST_LINES:
            raise WorkerError(
                f"the Ray cluster broke off {MOST_LINES} times without a receipt for {_rows(missing)} ({why}): see its "
                "logs, then run the same command again to go on"
            )
        crew.note(f"the work on the Ray cluster broke off ({why}); it starts again")
        shards = itertools.chain(missing, shards)


class _Line:
    """A desk, actors around it, and a thread that brings their outcomes."""

    def __init__(self, crew: _Crew, shards: Iterator[Shard]) -> None:
        self.open: dict[int, Shard] = {}
        """Shards without a receipt, by their place at the desk."""
        self.exhausted = False
        self.num_receipts = 0
        self.broken: str | None = None
        self._crew = crew
        self._shards = shards
        self._places = itertools.count()
        self._error: ImpactError | str | None = None
        self._deadline: float | None = None
        self._ended = False
        self._found: queue.SimpleQueue[Outcome | str | None] = queue.SimpleQueue()
        self._desk, self._thread = crew.begin(self._found)

    def receipts(self, stop: threading.Event) -> Iterator[Receipt]:
        """Until the shards are done, the work breaks off or ``stop`` is heeded; raises what a worker raised."""
        try:
            while not self._over():
                self._lay_out(stop)
                yield from self._collected()
        except self._crew.ray.exceptions.RayError as error:
            self.broken = connection.last_line(error)
        if isinstance(self._error, ImpactError):
            raise self._error
        if self._error is not None:
            raise RuntimeError(f"a worker failed:\n{self._error}")

    def close(self) -> None:
        """Leaves nothing behind: workers may end their pass for a while, and no actor outlives the desk."""
        with suppress(Exception):
            self._ask(self._desk.end.remote(stop=True), within_s=CLOSE_S)
        self._thread.join(CLOSE_S)
        with suppress(Exception):
            self._crew.ray.kill(self._desk)
        self._thread.join(CLOSE_S)

    def _over(self) -> bool:
        return self._ended or (self._deadline is not None and time.monotonic() > self._deadline)

    def _lay_out(self, stop: threading.Event) -> None:
        """Hands out shards as long as actors may need them."""
        if self._deadline is None and (stop.is_set() or self._error is not None):
            self._deadline = time.monotonic() + PATIENCE_S
            self._ask(self._desk.end.remote(stop=True))
        while self._deadline is None and not self.exhausted and len(self.open) < self._crew.size + AHEAD:
            shard = next(self._shards, None)
            if shard is None:
                self.exhausted = True
                self._ask(self._desk.end.remote())
            else:
                self.open[next(self._places)] = shard
                self._ask(self._desk.lay.remote(pickle.dumps(shard)))

    def _collected(self) -> Iterator[Receipt]:
        """The receipt of the next outcome, if one comes soon and holds one that is not known."""
        try:
            outcome = self._found.get(timeout=GLANCE_S)
        except queue.Empty:
            return
        if outcome is None or isinstance(outcome, str):
            self._ended, self.broken = True, outcome
            return
        self._error = self._error or outcome.error
        if outcome.died:
            self._mourn(outcome)
        if outcome.receipt is not None and self.open.pop(outcome.place, None) is not None:
            self._desk.finish.remote(outcome.place)
            self.num_receipts += 1
            yield outcome.receipt

    def _mourn(self, outcome: Outcome) -> None:
        """Says that actors died over a shard, and gives up if none could do it."""
        if (shard := self.open.get(outcome.place)) is None:
            return
        workers = "a worker" if outcome.died == 1 else f"{outcome.died} workers"
        died = f"{workers} of the Ray cluster died over {_rows([shard])}"
        if outcome.receipt is not None:
            self._crew.note(f"{died}; another finished them")
            return
        advice = "use fewer workers or fewer rows per pass, or leave these rows out"
        self._error = self._error or WorkerError(f"{died}, often a sign of too little memory: {advice}")

    def _ask(self, answer: Any, *, within_s: float = START_S) -> None:
        self._crew.ray.get(answer, timeout=within_s)


def _rows(shards: list[Shard]) -> str:
    """Names the rows of the input that the shards hold."""
    spans = [f"{shard.entries[0].row} to {shard.entries[-1].row}" for shard in shards[:3]]
    return f"rows {', '.join(spans)}" + (f" and {len(shards) - 3} shards more" if len(shards) > 3 else "")
