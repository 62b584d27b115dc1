"""How the process ends: at once when the work is done, in Python's own way when anything is left."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
JOB = ["cli.py", "--prompt", "The Eiffel Tower is in", "--device", "cpu", "--output", "-"]
AT_EXIT = "import atexit, sys; atexit.register(lambda: print('asked for', file=sys.stderr)); "
TORN_DOWN = (
    "import sys, torch, engine.commands as commands; "
    "Last = type('Last', (), {'__del__': lambda self: print('torn down', file=sys.stderr)}); sys.last = Last(); "
)


def python(*words, **options):
    """A finished process of Python in the project's folder."""
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=BUFFERED, text=True, stderr=subprocess.PIPE, **options
    )


def program(work, *, before=""):
    """A process that ends as ``cli.py`` does, with ``main`` replaced by an expression."""
    code = f"{before}{TORN_DOWN}commands.main = lambda: {work}; commands.program()"
    return python("-c", code, stdout=subprocess.PIPE)


@pytest.mark.parametrize("status", [0, 1, 2, 130])
def test_the_status_is_kept_and_nothing_is_taken_apart(status):
    done = program(status)
    assert (done.returncode, done.stderr) == (status, "")


def test_what_streams_hold_is_written():
    done = program("print('a' * 100, end='') or print('b', end='', file=sys.stderr) or 0")
    assert (done.stdout, done.stderr) == ("a" * 100, "b")


def test_what_libraries_ask_for_at_exit_is_done():
    assert program(0, before=AT_EXIT).stderr == "asked for\n"


def test_a_defect_has_its_traceback_and_status_1():
    done = program("1 / 0")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ZeroDivisionError" in done.stderr


def test_a_thread_at_work_is_waited_for():
    work = "__import__('threading').Timer(0.3, lambda: print('worked')).start() or 0"
    done = program(work)
    assert (done.returncode, done.stdout) == (0, "worked\n")


def test_a_full_device_is_noticed_as_ever():
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with full.open("w") as stream:
        done = python("-c", f"{TORN_DOWN}commands.main = lambda: print('lost') or 0; commands.program()", stdout=stream)
    assert done.returncode == 120
    assert "No space left" in done.stderr


def test_the_reader_of_the_table_may_leave():
    job = subprocess.Popen([sys.executable, *JOB], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert job.stdout is not None
    job.stdout.close()
    _, err = job.communicate()
    assert job.returncode == 0
    assert "Traceback" not in err
    assert "Exception" not in err


def test_the_whole_table_arrives():
    done = python(*JOB, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout.count("\n")) == (0, 121)


def test_a_users_mistake_after_loading_is_status_2():
    done = python(*JOB, "--layers", "0-9", stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_other_code_goes_on_after_it():
    """A profiler or a debugger that runs the command has work left."""
    code = (
        f"{TORN_DOWN}import runpy; commands.main = lambda: 3\n"
        "try: runpy.run_path('cli.py', run_name='__main__')\n"
        "except SystemExit as stop: print('went on with', stop.code)"
    )
    done = python("-c", code, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (0, "went on with 3\n")
