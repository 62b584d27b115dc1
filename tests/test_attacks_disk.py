"""A disk that is full or read-only, for real: a small tmpfs in a mount namespace of its own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
INSIDE = """
import contextlib, io, json, os, shutil, subprocess, sys
from pathlib import Path
from engine.commands import main
from kills import contents

disk = Path("disk")
words, name, options = json.loads(sys.argv[1])
target = disk / name

def mount(*options):
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "none", "disk"], check=True)

def run():
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        status = main(words)
    return status, said.getvalue()

def left():
    return contents(target) if target.is_dir() else target.read_bytes()

disk.mkdir()
mount("size=64m")
assert run()[0] == 0
whole = left()
tried = []
for option in options:
    subprocess.run(["umount", "disk"], check=True)
    mount(*option)
    status, said = run()
    files = sorted(str(path.relative_to(disk)) for path in disk.rglob("*") if path.is_file())
    mount("remount", "size=64m", "rw")
    again = run()
    tried.append([option, status, said, files, again, left() == whole])
print(json.dumps(tried))
"""


def _can_mount():
    words = ["unshare", "-rm", "sh", "-c", "mkdir -p /tmp && mount -t tmpfs none /tmp"]
    return shutil.which("unshare") is not None and subprocess.run(words, capture_output=True).returncode == 0


def tried(place, words, name, options):
    """What a command said and left on disks with these options, and again once there is space."""
    process = ["unshare", "-rm", sys.executable, "-c", INSIDE, json.dumps([words, name, options])]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(process, cwd=place, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def sizes(*kilobytes):
    return [[f"size={each}k"] for each in kilobytes]


PROMPT = "The Eiffel Tower is in " + "the city of Paris and " * 3
COMMANDS = {
    "parquet": (["--prompt", PROMPT, "--output", "disk/t.parquet"], "t.parquet", sizes(4)),
    "csv": (["--prompt", PROMPT, "--output", "disk/t.csv"], "t.csv", sizes(4, 12)),
    "page": (["--prompt", PROMPT, "--report", "disk/p.html", "--quiet"], "p.html", sizes(4, 40)),
    "set": (["--prompts", "prompts.txt", "--output", "disk/set"], "set", sizes(4, 8, 12, 16, 24, 32, 48, 64)),
    "set of CSV": (["--prompts", "prompts.txt", "--output", "disk/set", "--format", "csv"], "set", sizes(12, 24, 48)),
}


@pytest.mark.skipif(not _can_mount(), reason="no file system can be mounted here")
@pytest.mark.parametrize("kind", COMMANDS)
def test_a_full_or_read_only_disk_is_one_line_and_space_mends_it(tmp_path, kind):
    words, name, options = COMMANDS[kind]
    (tmp_path / "prompts.txt").write_text(f"{PROMPT}\n" * 40)
    failures = 0
    words = [*words, "--device", "cpu"]
    for option, status, said, files, again, same in tried(tmp_path, words, name, [*options, ["ro"]]):
        assert status in (0, 2), (option, said)
        assert "Traceback" not in said
        if status == 2:
            failures += 1
            assert said.splitlines()[-1].startswith("mask-impact: "), (option, said)
            assert ("Read-only file system" if option == ["ro"] else "No space left") in said, (option, said)
            assert name == "set" or files == [], option
        assert again[0] == 0, (option, again)
        assert same, option
    assert failures > 1
