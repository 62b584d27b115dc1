"""The crew of processes: every shard once, whatever happens to a worker, and nobody is left behind.

The workers measure nothing; what becomes of a shard is said by its prompt (``fake_worker``).
"""

import itertools
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from fake_worker import FakeWorker, killed, refused, sleeping, soon

from engine.crews import processes
from engine.crews.processes import orders_for, receipts
from engine.datasets.orders import Order
from engine.datasets.shards import Shard
from engine.errors import DeviceError, ImpactError, ResultsError, WorkerError
from engine.inputs.entries import Entry

ROOT = Path(__file__).parent.parent


def shards_of(prompts):
    """A shard of three rows for each prompt."""
    for index, prompt in enumerate(prompts):
        yield Shard(index, tuple(Entry(3 * index + n, n, prompt) for n in range(3)), "")


def order_in(folder, **facts):
    return Order(
        folder=str(folder), model=None, device="cpu", dtype="float32", layers=(), tokens=None, run_id="r", **facts
    )


def crew(folder, prompts, *, num_workers=2, stop=None, make_worker=FakeWorker, **options):
    stop = stop or threading.Event()
    shards = shards_of(prompts)
    return receipts(order_in(folder), shards, num_workers=num_workers, stop=stop, make_worker=make_worker, **options)


def pids(folder):
    return {int(path.stem) for path in folder.glob("*.pid")}


def running(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.fixture(autouse=True)
def _nothing_is_left():
    threads = set(threading.enumerate())
    yield
    assert not psutil.Process().children(), "a process or a zombie was left behind"
    assert set(threading.enumerate()) <= threads


def test_one_receipt_for_every_shard(tmp_path):
    done = list(crew(tmp_path, ["slow"] + ["quick"] * 20))
    assert sorted(receipt.shard for receipt in done) == list(range(21))
    assert {receipt.counts["pid"] for receipt in done} <= pids(tmp_path)
    assert len(pids(tmp_path)) == 2


def test_no_shards_no_processes(tmp_path):
    assert list(crew(tmp_path, [])) == []
    assert len(list(crew(tmp_path, ["quick"], num_workers=5))) == 1
    assert len(pids(tmp_path)) == 1, "a model is loaded for whoever has something to do"


def test_any_text_and_any_printing_come_through(tmp_path):
    texts = ["noisy", "quick \udc80 \U0001f600 \0", "quick " + "long" * 100_000]
    assert {receipt.digest for receipt in crew(tmp_path, texts)} == set(texts)


def test_shards_are_taken_as_they_are_needed(tmp_path):
    taken = []
    done = crew(tmp_path, (taken.append(n) or "quick" for n in itertools.count()))
    for received in range(1, 30):
        next(done)
        assert len(taken) < received + 2 * processes.SHARDS_PER_WORKER
    done.close()


def test_a_shard_is_written_while_the_next_is_measured(tmp_path):
    done = crew(tmp_path, ["patient", "quick"], num_workers=1)
    assert [receipt.shard for receipt in done] == [0, 1]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_worker_that_dies_is_replaced(tmp_path, num_workers):
    notes = []
    prompts = ["quick", "deadly-once", "quick", "quick", "deadly-once", "quick"]
    done = [receipt.shard for receipt in crew(tmp_path, prompts, num_workers=num_workers, note=notes.append)]
    assert sorted(done) == list(range(6))
    assert len(notes) == 2
    assert all("was killed by SIGKILL; rows " in note for note in notes)
    assert len(pids(tmp_path)) == num_workers + 2


def test_a_worker_killed_from_outside_is_replaced(tmp_path):
    done = crew(tmp_path, ["quick"] * 40)
    first = next(done)
    os.kill(first.counts["pid"], signal.SIGKILL)
    assert sorted([first.shard, *(receipt.shard for receipt in done)]) == list(range(40))


def test_a_deadly_shard_ends_the_run_and_is_named(tmp_path):
    done = []
    with pytest.raises(WorkerError, match=r"three workers died while measuring rows 6 to 8 \(.*SIGKILL\)") as caught:
        done.extend(receipt.shard for receipt in crew(tmp_path, ["slow", "slow", "deadly", *["quick"] * 5]))
    assert "\n" not in str(caught.value)
    assert "fewer workers" in str(caught.value)


def test_loading_that_kills_ends_the_run(tmp_path):
    with pytest.raises(WorkerError, match="three workers died while loading the model"):
        list(crew(tmp_path, ["quick"] * 3, make_worker=killed))


@pytest.mark.parametrize("prompt", ["mistake", "unwritable"])
def test_a_mistake_keeps_its_class_and_message(tmp_path, prompt):
    with pytest.raises(ResultsError) as caught:
        list(crew(tmp_path, ["quick", prompt, "endless", "endless", "endless"]))
    assert str(caught.value) == "the disk is full"


def test_a_mistake_while_loading_is_raised_at_once(tmp_path):
    with pytest.raises(DeviceError, match=r"^there is no such device$"):
        list(crew(tmp_path, ["quick"] * 3, make_worker=refused))


def test_a_defect_shows_its_traceback(tmp_path):
    with pytest.raises(RuntimeError, match=r"(?s)Traceback.*in measure.*ZeroDivisionError: a number") as caught:
        list(crew(tmp_path, ["defect", "endless"]))
    assert not isinstance(caught.value, ImpactError)


def test_shards_that_cannot_be_read_end_the_run(tmp_path):
    def prompts():
        yield from ["endless", "endless"]
        raise ResultsError("the input is cut off")

    with pytest.raises(ResultsError, match="cut off"):
        list(crew(tmp_path, prompts()))


def test_stop_drops_what_is_measured_and_keeps_what_is_written(tmp_path):
    stop = threading.Event()
    done = crew(tmp_path, ["endless", "slow", "quick", "endless", *["quick"] * 9], stop=stop)
    waiting = threading.Timer(0.0, lambda: soon((tmp_path / "3.begun").exists) and stop.set())
    waiting.start()
    assert sorted(receipt.shard for receipt in done) == [1]
    waiting.join()
    assert not (tmp_path / "2.begun").exists()


def test_stop_does_not_wait_for_a_model(tmp_path):
    stop = threading.Event()
    waiting = threading.Timer(0.0, lambda: soon(lambda: pids(tmp_path)) and stop.set())
    waiting.start()
    assert list(crew(tmp_path, ["quick"] * 3, stop=stop, make_worker=sleeping)) == []
    waiting.join()
    assert list(crew(tmp_path, ["quick"], stop=stop)) == []


def test_patience_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "PATIENCE_S", 0.1)
    stop = threading.Event()
    monkeypatch.setattr(processes.Seat, "stop", lambda seat: None)
    done = crew(tmp_path, ["quick", "endless", "endless"], num_workers=1, stop=stop)
    next(done)
    stop.set()
    assert list(done) == []


def test_closed_early_nobody_goes_on(tmp_path):
    done = crew(tmp_path, ["quick", "quick", *["endless"] * 5])
    next(done)
    assert soon(lambda: len(pids(tmp_path)) == 2)
    done.close()
    assert not any(psutil.pid_exists(pid) for pid in pids(tmp_path))


COORDINATOR = """
import sys, pathlib
sys.path[:0] = {paths!r}
import test_worker_processes as tests
list(tests.crew(pathlib.Path({folder!r}), ["endless"] * 4, make_worker=tests.{make_worker}))
"""


@pytest.mark.parametrize("make_worker", ["FakeWorker", "sleeping"])
def test_workers_end_with_a_coordinator_that_is_killed(tmp_path, make_worker):
    code = COORDINATOR.format(paths=[str(ROOT), str(ROOT / "tests")], folder=str(tmp_path), make_worker=make_worker)
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "__init__.py").write_text("raise ImportError('another engine')")
    with subprocess.Popen([sys.executable, "-P", "-c", code], cwd=tmp_path) as coordinator:
        assert soon(lambda: len(pids(tmp_path)) == 2)
        assert all(map(running, pids(tmp_path)))
        coordinator.kill()
    assert soon(lambda: not any(map(running, pids(tmp_path))))


def test_ctrl_c_is_not_for_workers(tmp_path):
    done = crew(tmp_path, ["quick"] * 30)
    first = next(done)
    for pid in pids(tmp_path):
        assert os.getpgid(pid) != os.getpgid(0), "the terminal signals the whole group in the foreground"
        os.kill(pid, signal.SIGINT)
    assert {receipt.counts["pid"] for receipt in done} | {first.counts["pid"]} <= pids(tmp_path)
    assert len(pids(tmp_path)) == 2


def test_each_worker_has_its_order(monkeypatch, tmp_path):
    import torch

    order = order_in(tmp_path, threads=3)
    assert orders_for(order, 2) == [order, order]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for device, devices in {"cuda": ["cuda:0", "cuda:1", "cuda:0"], "cuda:1": ["cuda:1"] * 3}.items():
        on_device = Order(**{**vars(order), "device": device})
        assert [each.device for each in orders_for(on_device, 3)] == devices
    shares = orders_for(order_in(tmp_path), 10_000)
    assert {each.threads for each in shares} == {1}


def test_threads_are_limited_before_libraries_are_imported(tmp_path):
    shard = next(shards_of(["quick"]))
    order = order_in(tmp_path, threads=3)
    (done,) = receipts(order, [shard], num_workers=1, stop=threading.Event(), make_worker=FakeWorker)
    assert done.counts["threads"] == 3
