"""``--prompts`` as a user types it: what is written, said and refused, and what Ctrl-C and SIGKILL leave behind."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import polars as pl
import pytest
from kills import contents, finish, start, trial, write_prompts

from engine import read_results
from engine.commands import main
from engine.datasets.orders import Receipt
from engine.datasets.progress import Progress, State, duration, state_line


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("The Eiffel Tower is in\n\nThe capital of France is\nx\n")
    return path


def run(*words):
    return main([str(word) for word in words])


def test_a_file_becomes_a_dataset(prompts, tmp_path, capfd):
    assert run("--prompts", prompts, "--output", tmp_path / "set") == 0
    said = capfd.readouterr()
    assert "2 prompts" in said.out
    assert "2 rejected (see rejected.parquet)" in said.out
    assert "Traceback" not in said.err
    assert read_results(tmp_path / "set").select("prompt_id").unique(maintain_order=True).collect()[
        "prompt_id"
    ].to_list() == [0, 2]
    rejected = pl.read_parquet(tmp_path / "set" / "rejected.parquet")
    assert rejected["prompt_id"].to_list() == [1, 3]
    assert run("--prompts", prompts, "--output", tmp_path / "set", "--resume") == 0
    assert "going on after 2 prompts" in capfd.readouterr().err
    assert run("analyze", tmp_path / "set", "--json") == 0
    found = json.loads(capfd.readouterr().out)
    assert found["counts"]["prompts"] == 2
    assert found["provenance"]["manifest"]["status"] == "complete"


def test_quiet_is_quiet(prompts, tmp_path, capfd):
    assert run("--prompts", prompts, "--output", tmp_path / "set", "--quiet") == 0
    assert run("--prompt", "The Eiffel Tower is in", "--output", tmp_path / "one.csv", "--quiet") == 0
    assert capfd.readouterr() == ("", "")


def test_standard_input_and_columns(tmp_path):
    command = [sys.executable, "cli.py", "--prompts", "-", "--output", str(tmp_path / "set"), "--limit", "2"]
    done = subprocess.run(command, input="The Eiffel Tower\nis in\nParis and London\n", text=True, capture_output=True)
    assert (done.returncode, "2 prompts" in done.stdout) == (0, True)
    (tmp_path / "in.csv").write_text("name,question,answer\nq1,The Eiffel Tower is in,Paris\n")
    options = ("--prompt-column", "question", "--id-column", "name", "--format", "csv")
    assert run("--prompts", tmp_path / "in.csv", "--output", tmp_path / "named", *options) == 0
    assert (tmp_path / "named" / "prompts.csv").read_text().splitlines() == [
        "prompt_id,input_row,text,num_tokens,answer",
        "q1,0,The Eiffel Tower is in,5,Paris",
    ]
    assert read_results(tmp_path / "named").collect()["prompt_id"].unique().to_list() == ["q1"]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--prompt", "a b", "--limit", "3"], "--limit is for sets of prompts"),
        (["--prompt", "a b", "--workers", "2"], "--workers is for sets of prompts"),
        (["--prompts", "{prompts}", "--output", "table.csv"], "--prompts writes a folder"),
        (["--prompts", "none.txt"], "none.txt"),
        (["--prompts", "{prompts}", "--prompt-column", "x"], "--prompt-column"),
        (["--prompts", "{prompts}", "--limit", "0"], "limit"),
        (["--prompts", "{prompts}", "--workers", "0"], "there cannot be 0 workers"),
        (["--prompts", "{prompts}", "--layers", "99"], "there is no layer 99"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(prompts, tmp_path, capfd, monkeypatch, words, part):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert run(*(word.format(prompts=prompts) for word in words)) == 2
    said = capfd.readouterr()
    assert said.err.startswith("mask-impact: error: ")
    assert part in said.err
    assert said.err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_another_model_or_setting_is_refused_by_name(prompts, tmp_path, capfd):
    assert run("--prompts", prompts, "--output", tmp_path / "set", "--quiet") == 0
    assert run("--prompts", prompts, "--output", tmp_path / "set", "--dtype", "float64") == 2
    assert "differs in settings dtype (float32 there, float64 here)" in capfd.readouterr().err
    prompts.write_text("Another prompt\n")
    assert run("--prompts", prompts, "--output", tmp_path / "set") == 2
    assert "another input (rows 0 to 0 are not what they were)" in capfd.readouterr().err
    assert run("--prompts", prompts, "--output", tmp_path / "set", "--overwrite", "--quiet") == 0


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("options", [(), ("--workers", "2")])
def test_killed_runs_go_on_to_the_same_dataset(tmp_path, options):
    """A few of the kills that ``python tests/kills.py`` makes on demand."""
    write_prompts(tmp_path / "prompts.txt", 300)
    began = time.perf_counter()
    assert finish(start(tmp_path / "prompts.txt", tmp_path / "whole")) is None
    seconds = time.perf_counter() - began
    for number in range(2):
        folder, draw = tmp_path / f"killed-{number}", random.Random(number)
        trial(tmp_path / "prompts.txt", folder, seconds=seconds, draw=draw, options=options)
        assert contents(folder) == contents(tmp_path / "whole")


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_ends_soon_and_says_how_to_go_on(tmp_path):
    write_prompts(tmp_path / "prompts.txt", 6000)
    process = start(tmp_path / "prompts.txt", tmp_path / "set")
    while not list(tmp_path.glob("set/.unfinished/receipt-*.json")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on from there" in said.decode()
    assert "Traceback" not in said.decode()
    assert json.loads((tmp_path / "set" / "manifest.json").read_text())["status"] == "unfinished"


def counted(prompts, rows, rejected=0, halvings=0):
    counts = {"prompts": prompts, "rejected": rejected, "tokens": 0, "rows": rows}
    return Receipt(shard=0, digest="", counts=counts, halvings=halvings)


def test_progress_tells_rate_and_time_left():
    state = State.after([counted(100, 1000)])
    state.add(counted(100, 1000, rejected=3), 0.5)
    assert state_line(state, 10.0) == (
        "200 prompts, 2,000 rows; 3 rejected; 10.0 prompts/s, 100 rows/s; 50%, 20 s left"
    )
    state.fraction = None
    assert state_line(state, 10.0).endswith("rows/s")
    assert [duration(seconds) for seconds in (0.2, 75, 3700, 90000)] == ["0 s", "1 min 15 s", "1 h 01 min", "1 d 1 h"]


def test_progress_says_once_that_memory_ran_out(capfd):
    state, progress = State.after([]), Progress()
    for _ in range(3):
        state.add(counted(1, 1, halvings=1), None)
        progress(state)
    said = capfd.readouterr().err.splitlines()
    assert sum("ran out of memory" in line for line in said) == 1
    assert len(said) == 2  # nobody watches: the next line comes half a minute later
