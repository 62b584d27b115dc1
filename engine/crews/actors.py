"""The work as a dataset of Ray Data: shards come from a desk, actors measure them, outcomes go to a queue.

Importing this module needs Ray; only ``engine.crews.cluster`` does so, when somebody asks for it.
"""

import pickle
import queue
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow
import ray
from ray.data import ActorPoolStrategy, Dataset, Datasource, read_datasource
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask

from engine.crews.connection import last_line
from engine.crews.desk import Desk, Outcome
from engine.datasets.orders import Order, Stopped
from engine.errors import ImpactError, WorkerError

MakeWorker = Callable[[Order], Any]
Found = queue.SimpleQueue[Outcome | str | None]
MOST_DEATHS = 3
"""So many actors may die over the same shard, or one over loading the model, before the run gives up."""


class ShardSource(Datasource):
    """The shards of a desk, a block each, from one task that waits for them."""

    def __init__(self, desk: Any) -> None:
        super().__init__()
        self._desk = desk

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, *_: object, **__: object) -> list[ReadTask]:
        desk = self._desk
        unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(lambda: _blocks(desk), unknown)]


def _blocks(desk: Any) -> Iterator[pyarrow.Table]:
    place = 0
    while (shard := ray.get(desk.take.remote(place))) is not None:
        yield pyarrow.table({"place": [place], "shard": pyarrow.array([shard], pyarrow.large_binary())})
        place += 1


class ShardActor:
    """The class that Ray Data makes actors of: the model is loaded once, every batch is one shard."""

    def __init__(self, order: Order, make_worker: MakeWorker, desk: Any) -> None:
        self._desk, self._self = desk, ray.get_runtime_context().current_actor
        self._worker: Any = None
        self._error: ImpactError | str | None = None
        self._loaded = threading.Event()
        threading.Thread(target=self._heed, daemon=True).start()
        try:
            self._load(order, make_worker)
        except Exception as error:
            self._error = _packed(error)
        self._loaded.set()

    def _load(self, order: Order, make_worker: MakeWorker) -> None:
        """Makes the worker, unless the actor has died over that too often."""
        name = ray.get_runtime_context().get_actor_id()
        if ray.get(self._desk.begin.remote(name)) > MOST_DEATHS:
            raise WorkerError(
                f"a worker of the Ray cluster died {MOST_DEATHS} times while loading the model, often a sign of too "
                "little memory: use fewer workers or machines with more memory"
            )
        self._worker = make_worker(order)
        ray.get(self._desk.finish.remote(name))

    def _heed(self) -> None:
        """Waits for the call to stop, then for the end of the desk, which no actor outlives.

        Ray would keep an actor, and its cores, as long as anything refers to it: the traceback of an error does.
        """
        try:
            ray.get(self._desk.stopped.remote())
            self._loaded.wait()
            if self._worker is not None:
                self._worker.stop.set()
            ray.get(self._desk.gone.remote())
        except ray.exceptions.RayError:
            ray.kill(self._self)

    def __call__(self, block: pyarrow.Table) -> pyarrow.Table:
        place, shard = block["place"][0].as_py(), block["shard"][0].as_py()
        outcome = pickle.dumps(self._outcome(place, shard))
        return pyarrow.table({"outcome": pyarrow.array([outcome], pyarrow.large_binary())})

    def _outcome(self, place: int, packed: bytes) -> Outcome:
        if self._error is not None:
            return Outcome(place, error=self._error)
        if not packed or self._worker.stop.is_set():
            return Outcome(place)
        died = ray.get(self._desk.begin.remote(place)) - 1
        if died == MOST_DEATHS:
            return Outcome(place, died)
        try:
            return Outcome(place, died, receipt=self._worker(pickle.loads(packed)))
        except Exception as error:
            return Outcome(place) if isinstance(error, Stopped) else Outcome(place, error=_packed(error))


def _packed(error: Exception) -> ImpactError | str:
    return error if isinstance(error, ImpactError) else "".join(traceback.format_exception(error))


def begin(
    found: Found, order: Order, make_worker: MakeWorker, *, num_workers: int, num_cpus: int, num_gpus: int
) -> tuple[Any, threading.Thread]:
    """A desk, and a thread that puts the outcome of every shard laid there into ``found``, then how the work ended."""
    desk = ray.remote(num_cpus=0)(Desk).remote()
    # A core for the reading task would be taken from the actors: it only waits. An actor that dies is restarted and
    # its task repeated without end: that is what Ray Data asks for by itself.
    dataset = read_datasource(ShardSource(desk), override_num_blocks=1, num_cpus=0).map_batches(
        ShardActor,
        fn_constructor_args=(order, make_worker, desk),
        batch_size=1,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ActorPoolStrategy(size=num_workers, max_tasks_in_flight_per_actor=1),
        num_cpus=num_cpus,
        num_gpus=num_gpus,
    )
    _let_through(dataset)
    thread = threading.Thread(target=_work, args=(dataset, found), daemon=True)
    thread.start()
    return desk, thread


def _work(dataset: Dataset, found: Found) -> None:
    """Iterating the dataset does the work; at the end comes None, or why it broke off."""
    end = None
    try:
        for batch in dataset.iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow"):
            for outcome in batch["outcome"]:
                found.put(pickle.loads(outcome.as_py()))
    except BaseException as error:
        end = last_line(error)
    found.put(end)


def _let_through(dataset: Dataset) -> None:
    """Settings of this dataset alone: rows go on one by one, however long one takes."""
    context = dataset.context
    # Blocks of any size count as full, or receipts would be gathered.
    context.target_max_block_size = context.target_min_block_size = 1
    if hasattr(context, "execution_no_progress_timeout_s"):
        context.execution_no_progress_timeout_s = -1
