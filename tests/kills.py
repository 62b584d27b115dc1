"""Kill a run over a set at random moments, continue it, and compare with a run that was never killed.

    python tests/kills.py --kills 30

Each trial starts the command line in a fresh folder, ends it with SIGKILL after a random time, starts the same command
again until it comes through, and compares all files but the manifest byte by byte, and the manifest but for its times.
Parts are made small, so that there are many moments at which something is half done.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
WORDS = ["The", "Eiffel", "Tower", "is", "in", "Paris", "and", "the", "capital", "of", "France", "river", "wrote"]
SMALL = 24
"""Prompts in a part."""


def write_prompts(path, count, seed=0):
    """Prompts of 1 to 12 words, some of them too short to be measured."""
    draw = random.Random(seed)
    path.write_text("".join(" ".join(draw.choices(WORDS, k=draw.randint(1, 12))) + "\n" for _ in range(count)))


def start(prompts, folder, *options):
    """The command line on a set, in a process of its own whose parts are small."""
    command = [sys.executable, __file__, "--as-command", "--prompts", prompts, "--output", folder, "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen([*map(str, command), *options], env=environment, start_new_session=True, **pipes)


def finish(process):
    """Wait for the process; what it said where it failed."""
    _, said = process.communicate()
    return None if process.returncode == 0 else said.decode()


def kill(process):
    """End the process at once, and with it the workers that it started; whether it was still at work."""
    alive = process.poll() is None
    if alive:
        os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    return alive


def contents(folder):
    """Digests of all files of a dataset, and its manifest without times."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    manifest = json.loads(files.pop("manifest.json").read_text())
    receipts = files.pop("receipts.parquet", None)
    files.pop(".lock", None)
    found = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    del manifest["times"]
    return found | {"manifest": manifest, "receipts": receipts is not None}


def trial(prompts, folder, *, seconds, draw, options=()):
    """Kill a run within ``seconds`` of its start and come through with the next; how far the killed one had got."""
    while True:
        process = start(prompts, folder, *options)
        time.sleep(draw.uniform(0, 1) * seconds)
        if kill(process):
            break
        shutil.rmtree(folder, ignore_errors=True)  # it was finished before its time came
    receipts = len(list(folder.glob(".unfinished/receipt-*.json")))
    failure = finish(start(prompts, folder, *options))
    assert failure is None, failure
    return receipts


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--prompts", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", help="processes that do the work (default: the command itself)")
    arguments = parser.parse_args()
    options = ("--workers", arguments.workers) if arguments.workers else ()
    draw, survived = random.Random(arguments.seed), 0
    with tempfile.TemporaryDirectory() as place:
        prompts, whole = Path(place, "prompts.txt"), Path(place, "whole")
        write_prompts(prompts, arguments.prompts)
        began = time.perf_counter()
        assert finish(start(prompts, whole, *options)) is None
        seconds, expected = time.perf_counter() - began, contents(whole)
        for number in range(arguments.kills):
            folder = Path(place, f"killed-{number}")
            parts = trial(prompts, folder, seconds=seconds, draw=draw, options=options)
            same = contents(folder) == expected
            survived += same
            print(f"kill {number + 1}: after {parts} parts: {'identical' if same else 'DIFFERENT'}", flush=True)
    print(f"{survived} of {arguments.kills} kills survived with an identical dataset")
    return 0 if survived == arguments.kills else 1


def as_command():
    """The command line itself, with small parts, and one product: a busy machine may find another the faster one."""
    from engine.commands import program
    from engine.datasets import shards
    from engine.kernels.products import keeping_to

    shards.MOST_PROMPTS = SMALL
    with keeping_to("torch"):
        program()


if __name__ == "__main__":
    if "--as-command" in sys.argv:
        sys.argv.remove("--as-command")
        as_command()
    sys.exit(main())
