"""The crew on a Ray cluster: two actors of a local one, every receipt once whatever dies."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

ray = pytest.importorskip("ray")

from engine.crews import cluster, connection  # noqa: E402 - they are of no use without Ray
from engine.datasets.shards import Shard  # noqa: E402
from engine.datasets.worker import Order, Receipt  # noqa: E402
from engine.errors import ImpactError, ResultsError, WorkerError  # noqa: E402
from engine.inputs.entries import Entry  # noqa: E402

pytestmark = [
    # Ray leaves sockets, files and processes to the garbage collector, and announces changes of its own.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
]


@dataclass
class Fake:
    """A worker that takes its time. A shard's prompt says what happens: it dies, fails, or takes until it is told."""

    folder: Path
    stop: threading.Event = field(default_factory=threading.Event)

    def __call__(self, shard):
        (self.folder / f"began-{shard.index}").write_text(str(os.getpid()))
        deed = shard.entries[0].prompt
        if deed == "die" or (deed == "die once" and not self._again(shard)):
            os.kill(os.getpid(), signal.SIGKILL)
        if deed == "full":
            raise ResultsError("disk full: free some space")
        if deed == "defect":
            raise KeyError("a defect")
        for _ in range(1000 if deed == "long" else 2):
            if self.stop.is_set():
                from engine.datasets.worker import Stopped

                raise Stopped
            time.sleep(0.05)
        with (self.folder / "loads").open("a") as loads:
            loads.write(f"{shard.index}\n")
        return Receipt(shard=shard.index, digest=shard.digest)

    def _again(self, shard):
        mark = self.folder / f"died-{shard.index}"
        there = mark.exists()
        mark.touch()
        return there


def make_fake(order):
    with (Path(order.folder) / "made").open("a") as made:
        made.write(f"{os.getpid()}\n")
    if order.model == "too large":
        os.kill(os.getpid(), signal.SIGKILL)
    return Fake(Path(order.folder))


@pytest.fixture(scope="module")
def local_cluster():
    """One cluster for all tests that need none of their own; the crew joins what the process is connected to."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with connection.connected(None, num_cpus=2) as connected:
        yield connected


def order_for(folder, model=None):
    return Order(
        folder=str(folder), model=model, device="cpu", dtype="float32", layers=(0,), tokens=None, run_id="r", threads=1
    )


def shards_of(*deeds):
    for index, deed in enumerate(deeds):
        yield Shard(index, (Entry(2 * index, index, deed), Entry(2 * index + 1, index, "more")), f"digest {index}")


def crew(folder, shards, *, stop=None, model=None, **options):
    options = {"num_workers": 2, "make_worker": make_fake} | options
    return cluster.receipts(order_for(folder, model), shards, stop=stop or threading.Event(), **options)


def indices(receipts):
    return sorted(receipt.shard for receipt in receipts)


def gone(pid):
    """Whether a process has ended within ten seconds."""
    for _ in range(200):
        if not Path(f"/proc/{pid}").exists() or " Z " in Path(f"/proc/{pid}/stat").read_text():
            return True
        time.sleep(0.05)
    return False


def test_an_address_where_nobody_is_is_refused_at_once(tmp_path):
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1"):
        with pytest.raises(ImpactError, match=f"^no Ray cluster answers at '{address}' .*: start one with `ray start"):
            list(crew(tmp_path, shards_of("fine"), address=address))


def test_every_receipt_comes_once_and_early(local_cluster, tmp_path):
    asked = []

    def watched():
        for shard in shards_of(*["fine"] * 12):
            asked.append(shard.index)
            yield shard

    ahead, seen = [], []
    for receipt in crew(tmp_path, watched()):
        seen.append(receipt)
        ahead.append(len(asked) - len(seen))
    assert indices(seen) == list(range(12))
    assert {receipt.digest for receipt in seen} == {f"digest {n}" for n in range(12)}
    assert max(ahead) <= 2 + cluster.AHEAD
    assert len((tmp_path / "made").read_text().split()) == 2


def test_a_killed_actor_is_replaced_and_nothing_is_lost_or_doubled(local_cluster, tmp_path):
    notes = []
    deeds = ["fine", "fine", "die once", "fine", "fine", "fine"]
    assert indices(crew(tmp_path, shards_of(*deeds), note=notes.append)) == list(range(6))
    assert sorted(map(int, (tmp_path / "loads").read_text().split())) == list(range(6))
    assert len((tmp_path / "made").read_text().split()) == 3
    assert notes == ["a worker of the Ray cluster died over rows 4 to 5; another finished them"]


@pytest.mark.parametrize(
    ("deed", "model", "error", "message"),
    [
        ("full", None, ResultsError, "^disk full: free some space$"),
        ("defect", None, RuntimeError, "(?s)failed:.*Traceback.*in __call__.*KeyError: 'a defect'"),
        ("die", None, WorkerError, "^3 workers of the Ray cluster died over rows 4 to 5, often"),
        ("fine", "too large", WorkerError, "^a worker of the Ray cluster died 3 times while loading the model"),
    ],
)
def test_what_a_worker_raises_is_raised_here(local_cluster, tmp_path, deed, model, error, message):
    with pytest.raises(error, match=message) as caught:
        list(crew(tmp_path, shards_of("fine", "fine", deed, "fine"), model=model, num_workers=1))
    assert type(caught.value) is error


def test_nothing_is_left_behind_when_the_caller_leaves(local_cluster, tmp_path):
    receipts = crew(tmp_path, shards_of("fine", *["long"] * 20))
    next(receipts)
    receipts.close()
    assert all(map(gone, (tmp_path / "made").read_text().split()))
    assert local_cluster.is_initialized(), "a connection that was there stays"


def test_work_that_broke_off_starts_again(local_cluster, tmp_path, monkeypatch):
    desks, notes = [], []

    class Seen(cluster._Line):
        def receipts(self, stop):
            desks.append(self._desk)
            return super().receipts(stop)

    monkeypatch.setattr(cluster, "_Line", Seen)
    seen = []
    for receipt in crew(tmp_path, shards_of(*["fine"] * 8), note=notes.append):
        seen.append(receipt)
        if len(seen) == 2:
            local_cluster.kill(desks[0])
    assert indices(seen) == list(range(8))
    assert len(desks) == 2
    assert len(notes) == 1
    assert "broke off" in notes[0]


def test_without_ray_the_user_is_told_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray.data", None)
    with pytest.raises(ImpactError, match=r"^Ray is not installed here: pip install 'mask-impact\[ray\]'$"):
        list(crew(tmp_path, shards_of("fine")))


OWN = """
import signal, sys, threading
import ray, test_cluster as t
ray.cloudpickle.register_pickle_by_value(t)
stop = threading.Event()
signal.signal(signal.SIGINT, lambda *_: stop.set())
before = signal.getsignal(signal.SIGTERM)
for receipt in t.crew(t.Path(sys.argv[1]), t.shards_of("die once", "fine", *["long"] * 20), stop=stop):
    print(receipt.shard, ray._private.worker._global_node.get_session_dir_path(), flush=True)
assert signal.getsignal(signal.SIGTERM) is before and not ray.is_initialized()
"""


def test_a_cluster_of_its_own_is_quiet_drops_unfinished_shards_at_ctrl_c_and_leaves_nothing(tmp_path):
    root = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root.parent), str(root)])}
    command = [sys.executable, "-c", OWN, str(tmp_path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, cwd=tmp_path, start_new_session=True, **pipes) as process:
        lines = [process.stdout.readline().split() for _ in range(2)]
        os.killpg(process.pid, signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    assert (sorted(line[0] for line in lines), rest, errors, process.returncode) == (["0", "1"], "", "", 0)
    session = lines[0][1]
    assert not [found for found in psutil.process_iter(["cmdline"]) if session in " ".join(found.info["cmdline"] or [])]
