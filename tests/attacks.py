"""Random attacks: how many cases of each kind run, and a tally of those that did.

    pytest tests/test_attacks_*.py --attacks deep --tally tally.json

A test that draws its cases with hypothesis says how many of them belong to every run of the tests (``quick``, always
the same) and how many to a deep one (new ones every time).
"""

import functools
import json
import time
from collections import Counter
from pathlib import Path

from filelock import FileLock
from hypothesis import HealthCheck, settings

TALLY: Counter = Counter()
SECONDS: Counter = Counter()
MODE = {"deep": False}
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]


def attack(kind, *, quick, deep):
    """A test that draws ``quick`` or ``deep`` cases of this ``kind``; it goes below ``given``."""

    def decorate(test):
        @functools.wraps(test)
        def counted(*args, **kwargs):
            TALLY[kind] += 1
            started = time.perf_counter()
            try:
                return test(*args, **kwargs)
            finally:
                SECONDS[kind] += time.perf_counter() - started

        number = deep if MODE["deep"] else quick
        plan = {"max_examples": number, "deadline": None, "database": None, "suppress_health_check": SLOW}
        return settings(derandomize=not MODE["deep"], **plan)(counted)

    return decorate


def write_tally(path):
    """Add the cases that ran to what the file holds."""
    path = Path(path)
    with FileLock(f"{path}.lock"):  # several processes of pytest may end at once
        path.write_text(json.dumps(_added_to(path), indent=1) + "\n")


def _added_to(path):
    there = json.loads(path.read_text()) if path.exists() else {}
    for kind, count in TALLY.items():
        before = there.get(kind, {"cases": 0, "seconds": 0.0})
        seconds = round(before["seconds"] + SECONDS[kind], 1)
        there[kind] = {"cases": before["cases"] + count, "seconds": seconds}
    return there
