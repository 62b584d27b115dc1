"""The same command on the same machine gives the same bytes; and what may change the last digits changes no more."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.zoo import CASES, build, token_ids
from engine import AttentionMasker

ROOT = Path(__file__).parent.parent
PROMPTS = "The Eiffel Tower is in\nHamlet was written by\nx\nThe Eiffel Tower is in\nThe capital of France is\n"
COMMANDS = [
    *(["--prompt", "The Eiffel Tower is in", "--output", f"table.{kind}"] for kind in ("csv", "parquet", "jsonl")),
    ["--prompt", "The capital of France is", "--read", "output", "--cut", "window:2", "--output", "effects.csv"],
    ["--prompts", "prompts.txt", "--output", "set"],
    ["--prompts", "prompts.txt", "--output", "set_in_csv", "--format", "csv"],
]
TOLD = ("manifest.json", "receipts.parquet")
"""Files of a dataset that tell when it was made, and in what time."""
BY_NAME = {case.name: case for case in CASES}

pytestmark = pytest.mark.usefixtures("one_thread")


def digests_of_a_process(folder):
    """The files that the commands write, in a process of its own."""
    folder.mkdir()
    (folder / "prompts.txt").write_text(PROMPTS)
    code = f"from engine.commands import main; exit(max(main([*c, '--device', 'cpu']) for c in {COMMANDS!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in TOLD)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_two_processes_write_the_same_bytes(tmp_path):
    first, second = (digests_of_a_process(tmp_path / name) for name in ("first", "second"))
    assert first == second
    assert {"table.csv", "table.parquet", "table.jsonl", "effects.csv"} <= set(first)
    assert sum(name.startswith("set") for name in first) >= 8


@pytest.mark.parametrize("name", ["qwen3", "gemma-2", "gpt-oss", "mixtral"])
def test_the_same_run_gives_the_same_bits(name):
    """Of another masker, and again of the same one, when both have done as much before."""
    ids = token_ids(BY_NAME[name])
    one, other = (AttentionMasker(build(BY_NAME[name])) for _ in range(2))
    for _ in range(4):
        np.testing.assert_array_equal(one.measure(ids).distances, other.measure(ids).distances)


def test_companions_and_copies_in_a_pass_change_roundings_at_most():
    masker, ids = AttentionMasker(build(BY_NAME["qwen3"])), token_ids(BY_NAME["qwen3"])
    alone = masker.measure(ids).distances
    together = dict(masker.measure_many({"a": ids, "b": ids[:4], "c": ids, "d": ids[::-1], "e": ids}))
    for copy in "ace":
        np.testing.assert_array_equal(together[copy].distances, together["a"].distances)
        np.testing.assert_allclose(together[copy].distances, alone, rtol=1e-4, atol=1e-9)
