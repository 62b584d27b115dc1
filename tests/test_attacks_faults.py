"""Faults of the machine around a run: what it says, what it leaves behind, and that the next run makes the same.

The long forms: ``python tests/kills.py`` (SIGKILL at random moments) and ``python tests/signals.py`` (Ctrl-C).
"""

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import weakref

import numpy as np
import pytest
import torch
from kills import contents, start
from signals import COMMANDS, begin, ended, trial
from tiny import CASES, VOCAB, build
from tokenizers_for_tests import byte_level

from engine import AttentionMasker, read_results
from engine.commands import main
from engine.datasets import shards, worker
from engine.errors import ImpactError, ResultsError
from engine.interrupts import noticed

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals are others there")


def drop(number):
    """Get a signal in a callback, where Python drops the exception, and wait for what comes of it."""
    dying = type("Dying", (), {})()
    weakref.finalize(dying, signal.raise_signal, number)
    del dying
    time.sleep(20)


# Signals


@posix
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_whose_exception_nobody_got_comes_again(number, status):
    with noticed() as signals, pytest.raises(KeyboardInterrupt):
        drop(number)
    assert signals.status == status


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


# Damage on the disk


def flip(path):
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-7])


def empty(path):
    path.write_bytes(b"")


@pytest.fixture
def masker(monkeypatch):
    monkeypatch.setattr(shards, "MOST_PROMPTS", 5)
    monkeypatch.setattr("engine.datasets.folder.os.fsync", lambda handle: None)
    return AttentionMasker(build(next(case for case in CASES if case.name == "qwen3")), byte_level())


def drawn(count, seed=0):
    random = np.random.default_rng(seed)
    return ["x", *(random.integers(VOCAB, size=random.integers(2, 12)).tolist() for _ in range(count)), ""]


def delete(path):
    path.unlink()


def lengthen(path):
    path.write_bytes(path.read_bytes() + b" ")


def measured_prompts(monkeypatch):
    """How many prompts the worker measures, as it goes."""
    seen, measured = [], worker.measured
    monkeypatch.setattr(worker, "measured", lambda jobs, **how: seen.extend(jobs) or measured(jobs, **how))
    return seen


@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_a_damaged_part_is_named_when_it_is_read_and_made_again(masker, tmp_path, form):
    prompts, folder = drawn(11), tmp_path / "set"
    masker.run_dataset(prompts, folder, form=form)
    before, part = contents(folder), folder / "impacts" / f"part-000001.{form}"
    for damage in (flip, delete) if form == "csv" else (flip, cut_off, empty, delete, lengthen):
        damage(part)
        with pytest.raises(ResultsError, match=rf"part-000001\.{form}' .*run the dataset's command again"):
            read_results(folder)
        if damage is not flip:  # the size alone tells
            with pytest.raises(ResultsError, match=rf"part-000001\.{form}' (is missing|has )"):
                read_results(folder, verify=False)
        notes = []
        masker.run_dataset(prompts, folder, form=form, note=notes.append)
        assert notes[0] == "part 1 was damaged after it was written; it is measured again"
        assert contents(folder) == before
    assert read_results(folder, verify=True).collect().height == before["manifest"]["counts"]["rows"]


@pytest.mark.parametrize("most", [0, 1 << 31])
def test_commands_that_read_a_dataset_name_its_damaged_part(masker, tmp_path, capfd, monkeypatch, most):
    """One cell changed in its place: a table as good as any, with another number."""
    monkeypatch.setattr("engine.datasets.reading.VERIFIED_BYTES", most)
    masker.run_dataset(drawn(3), tmp_path / "set", form="csv")
    part = tmp_path / "set" / "impacts" / "part-000000.csv"
    text = part.read_text()
    part.write_text(text[:-4] + chr(ord(text[-4]) ^ 1) + text[-3:])
    pages = ["--output", str(tmp_path / "new.html")]
    for words in (["analyze"], ["report", *pages], ["plot", *pages]):
        if most or words == ["analyze"]:  # more than that is compared by who reads all of it anyway
            assert main([words[0], str(tmp_path / "set"), *words[1:]]) == 2
            assert "holds other bytes than were written; run the dataset's command again" in capfd.readouterr().err


@pytest.mark.parametrize(("name", "form"), [("prompts", "parquet"), ("tokens", "csv"), ("rejected", "parquet")])
def test_a_damaged_small_table_is_made_again_and_nothing_is_measured(masker, tmp_path, monkeypatch, form, name):
    prompts, folder = dict(enumerate(map(str, range(3000, 3011)))) | {"x": "", "y": "z"}, tmp_path / "set"
    masker.run_dataset(prompts, folder, form=form)
    before, table = contents(folder), folder / f"{name}.{form}"
    seen = measured_prompts(monkeypatch)
    for damage in (flip, delete):
        damage(table)
        notes = []
        masker.run_dataset(prompts, folder, form=form, note=notes.append)
        assert notes[0].startswith(f"{name}.{form} ")
        assert notes[0].endswith("; it is made again, with its kind")
        assert contents(folder) == before
    assert all(isinstance(job, ImpactError) for job in seen)


def test_damaged_receipts_are_made_again(masker, tmp_path):
    prompts, folder = drawn(11), tmp_path / "set"
    masker.run_dataset(prompts, folder)
    before, path = contents(folder), folder / "receipts.parquet"
    for damage in (flip, empty):
        damage(path)
        notes = []
        masker.run_dataset(prompts, folder, note=notes.append)
        assert notes[0].startswith("receipts.parquet ")
        assert contents(folder) == before


def test_a_set_that_is_mended_can_be_stopped_and_goes_on(masker, tmp_path):
    prompts, folder = drawn(18), tmp_path / "set"
    masker.run_dataset(prompts, folder)
    before = contents(folder)
    (folder / "tokens.parquet").unlink()

    def stop(state):
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        masker.run_dataset(prompts, folder, watch=stop)
    with pytest.raises(ResultsError, match="run its command again"):
        read_results(folder)
    masker.run_dataset(prompts, folder)
    assert contents(folder) == before


def test_another_input_is_refused_though_a_table_is_damaged(masker, tmp_path):
    prompts, folder = drawn(11), tmp_path / "set"
    masker.run_dataset(prompts, folder)
    part = (folder / "impacts" / "part-000000.parquet").read_bytes()
    (folder / "tokens.parquet").unlink()
    with pytest.raises(ResultsError, match="another input"):
        masker.run_dataset([[1, 2, 3]] * 13, folder)
    assert (folder / "impacts" / "part-000000.parquet").read_bytes() == part


def test_a_damaged_piece_of_a_run_under_way_is_made_again(masker, tmp_path, monkeypatch):
    prompts, folder = drawn(18), tmp_path / "set"
    masker.run_dataset(prompts, tmp_path / "whole")
    seen = []

    def stop(state):
        seen.append(state)
        if len(seen) == 3:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        masker.run_dataset(prompts, folder, watch=stop)
    flip(folder / ".unfinished" / "tokens-000001.parquet")
    flip(folder / ".unfinished" / "receipt-000000.json")
    notes = []
    masker.run_dataset(prompts, folder, note=notes.append)
    assert "the small tables of part 1 were damaged; they are made again" in notes
    assert contents(folder) == contents(tmp_path / "whole")


# Memory, files that go, the clock


def exhausted(*args, **kwargs):
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(
    "place",
    [
        "engine.checks.selfcheck.engine_accounts",
        "engine.model.checkpoints.build_decoder",
        "engine.sweeps.passes.make_batch",
    ],
)
def test_a_device_without_memory_is_one_line(monkeypatch, capfd, tmp_path, place):
    """While the model is checked, read, and measured."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(place, exhausted)
    assert main(["--prompt", "The Eiffel Tower is in", "--device", "cpu", "--output", "table.csv"]) == 2
    assert "ran out of memory" in capfd.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_a_set_whose_folder_is_removed_while_it_is_made_is_one_line(masker, tmp_path):
    prompts, folder = drawn(18), tmp_path / "set"
    with pytest.raises(ResultsError) as caught:
        masker.run_dataset(prompts, folder, watch=lambda state: shutil.rmtree(folder, ignore_errors=True))
    assert "\n" not in str(caught.value)
    masker.run_dataset(prompts, folder, overwrite=True)
    masker.run_dataset(prompts, tmp_path / "whole")
    assert contents(folder) == contents(tmp_path / "whole")


def test_a_clock_that_moves_changes_nothing(masker, tmp_path, monkeypatch):
    prompts, folder, back = drawn(18), tmp_path / "set", itertools.count(10**9, -86400)
    masker.run_dataset(prompts, tmp_path / "whole")
    monkeypatch.setattr(time, "time", lambda: float(next(back)))
    masker.run_dataset(prompts, folder)
    for path in folder.rglob("*"):
        os.utime(path, (1, 1))
    assert contents(folder) == contents(tmp_path / "whole")
    assert read_results(folder, verify=True).collect().height
    masker.run_dataset(prompts, folder)
    assert contents(folder) == contents(tmp_path / "whole")
