"""The crew of one: this process measures a shard while a thread of its own writes the one before."""

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from engine.datasets.orders import Receipt, Stopped
from engine.datasets.shards import Shard
from engine.datasets.worker import Worker


def receipts(worker: Worker, shards: Iterable[Shard], *, stop: threading.Event) -> Iterator[Receipt]:
    """The receipts of ``shards``, in order. When ``stop`` is set, what is measured is written and the rest is left."""
    worker.stop = stop
    written: Future[Receipt] | None = None
    with ThreadPoolExecutor(1, thread_name_prefix="writer") as writer:
        for shard in shards:
            try:
                measured = worker.measure(shard)
            except Stopped:
                break
            if written is not None:
                yield written.result()
            written = writer.submit(worker.write, measured)
        if written is not None:
            yield written.result()
