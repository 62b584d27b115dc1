"""A worker that measures nothing: the first word of a shard's prompt says what becomes of it.

It has a file of its own because processes import it, and what it imports.
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path

from engine.datasets.orders import Receipt
from engine.errors import DeviceError, ResultsError


class FakeWorker:
    """Writes a line of every shard, and does on the way what its prompt says."""

    def __init__(self, order):
        self.stop = threading.Event()
        self.folder = Path(order.folder)
        (self.folder / f"{os.getpid()}.pid").touch()

    def measure(self, shard):
        word = shard.entries[0].prompt.split()[0]
        (self.folder / f"{shard.index}.begun").touch()
        if word == "deadly" or (word == "deadly-once" and self.first_time(shard)):
            os.kill(os.getpid(), signal.SIGKILL)
        if word == "mistake":
            raise ResultsError("the disk is full")
        if word == "defect":
            raise ZeroDivisionError("a number too many")
        if word == "noisy":
            os.write(1, b"not a receipt")
            print("nor this", flush=True)
            assert sys.stdin.read() == ""
        if word == "endless" and self.stop.wait(60):
            from engine.datasets.worker import Stopped

            raise Stopped
        return shard

    def write(self, shard):
        word = shard.entries[0].prompt.split()[0]
        if word == "unwritable":
            raise ResultsError("the disk is full")
        if word == "slow":
            time.sleep(0.5)
        if word == "patient" and not soon((self.folder / f"{shard.index + 1}.begun").exists):
            raise AssertionError("the next shard is not measured meanwhile")
        counts = {"pid": os.getpid(), "threads": int(os.environ["OMP_NUM_THREADS"])}
        return Receipt(shard=shard.index, digest=shard.entries[0].prompt, counts=counts)

    def first_time(self, shard):
        mark = self.folder / f"{shard.index}.died"
        seen = mark.exists()
        mark.touch()
        return not seen


def refused(order):
    raise DeviceError("there is no such device")


def killed(order):
    os.kill(os.getpid(), signal.SIGKILL)


def sleeping(order):
    (Path(order.folder) / f"{os.getpid()}.pid").touch()
    time.sleep(60)


def soon(condition, seconds=10.0):
    """Whether ``condition()`` holds within some seconds."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()
