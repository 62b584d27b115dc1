"""Faults of the machine around a run: what it says, what it leaves behind, and that the next run makes the same.

The long forms: ``python tests/kills.py`` (SIGKILL at random moments) and ``python tests/signals.py`` (Ctrl-C).
"""

import random
import signal
import subprocess
import sys
import time
import weakref

import pytest
from kills import start
from signals import COMMANDS, begin, ended, trial

from engine.commands import main
from engine.interrupts import noticed

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals are others there")


class Dying:
    """Something that can die."""


# Signals


@posix
def test_a_signal_whose_exception_nobody_got_comes_again():
    """Python drops what is raised in a callback, and with it a user's Ctrl-C."""
    dying = Dying()
    weakref.finalize(dying, signal.raise_signal, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), noticed() as signals:
        del dying
        time.sleep(20)
    assert signals.number == signal.SIGINT


@posix
def test_sigterm_that_nobody_got_keeps_its_status():
    dying = Dying()
    weakref.finalize(dying, signal.raise_signal, signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), noticed() as signals:
        del dying
        time.sleep(20)
    assert signals.status == 143
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_signals_mean_what_they_meant_before():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as nohup and a shell's background do it
    try:
        with noticed():
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert signal.getsignal(signal.SIGINT) == before


@posix
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_what_a_library_makes_of_a_signal_is_no_defect(monkeypatch, capfd, number, status):
    """An extension that is being imported turns the exception into an ImportError of its own."""

    def importing(arguments):
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            raise ImportError("multiarray failed to import") from None

    monkeypatch.setattr("engine.commands.models.execute", importing)
    assert main(["models"]) == status
    assert capfd.readouterr().err == "mask-impact: interrupted; no file was left half-written\n"


@posix
@pytest.mark.parametrize("options", [(), ("--workers", "2")])
def test_ctrl_c_ends_a_run_that_waits_for_its_input(tmp_path, options):
    """Lines of standard input that never come; the first signal is enough, and what came is finished."""
    words = ("--prompts", "-", "--device", "cpu", "--output", "set", *options)
    process = begin(words, tmp_path, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    process.stdin.write(b"The Eiffel Tower is in\n")
    process.stdin.flush()
    while not (tmp_path / "set" / ".unfinished").exists():
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.3)
    status, said, _ = ended(process, signal.SIGINT)
    assert status == 130, said
    assert "the same command goes on from there" in said
    assert "Traceback" not in said


@posix
def test_sigterm_stops_a_set_as_ctrl_c_does(tmp_path):
    (tmp_path / "prompts.txt").write_text("The Eiffel Tower is in\n" * 4000)
    process = start(tmp_path / "prompts.txt", tmp_path / "set")
    while not list(tmp_path.glob("set/.unfinished/receipt-*.json")):
        assert process.poll() is None
        time.sleep(0.05)
    status, said, _ = ended(process, signal.SIGTERM)
    assert status == 143, said
    assert "the same command goes on from there" in said


@posix
def test_random_moments():
    """Some of those of ``python tests/signals.py``."""
    draw = random.Random(5)
    for name in ("csv", "set"):
        _, _, complaint = trial(COMMANDS[name], 4.0, draw)
        assert complaint is None
