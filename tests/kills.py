"""Kill a run over a set at random moments, continue it, and compare with a run that was never killed.

    python tests/kills.py --kills 100

Each trial starts the command line in a fresh folder, ends it with SIGKILL after a random time, often kills the run that
goes on with it as well, starts the same command again until it comes through, and compares all files byte by byte, the
manifest and the receipts but for their times. The forms of a dataset take turns. Parts are made small, so that there
are many moments at which something is half done.
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
FORMS = {
    "parquet": (),
    "csv": ("--format", "csv"),
    "effects": ("--read", "output", "--cut", "window:2", "--hidden-from", "query"),
    "workers": ("--workers", "2"),
}
AGAIN = 0.5
"""How often a run that goes on is killed, too."""


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
    """Digests of all files of a dataset, and its manifest and receipts without times."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    manifest = json.loads(files.pop("manifest.json").read_text())
    receipts = receipts_in(files.pop("receipts.parquet", None))
    files.pop(".lock", None)
    found = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    del manifest["times"]
    manifest.get("files", {}).pop("receipts.parquet", None)  # it holds times
    return found | {"manifest": manifest, "receipts": receipts}


def receipts_in(path):
    """The rows of the table of receipts, without times; None without one."""
    if path is None:
        return None
    import polars as pl

    table = pl.read_parquet(path)
    receipts = [json.loads(text) | {"measured_s": None} for text in table["receipt"]]
    return [*table.drop("receipt").rows(), *receipts]


def trial(prompts, folder, *, seconds, draw, options=()):
    """Kill a run within ``seconds`` of its start, perhaps again, and come through; how far each had got in parts."""
    reached = []
    while not reached or draw.random() < AGAIN:
        process = start(prompts, folder, *options)
        time.sleep(draw.uniform(0, 1) * seconds)
        if kill(process):
            reached.append(len(list(folder.glob(".unfinished/receipt-*.json"))))
        elif not reached:
            shutil.rmtree(folder, ignore_errors=True)  # it was finished before its time came
    failure = finish(start(prompts, folder, *options))
    assert failure is None, failure
    return reached


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--prompts", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=[*FORMS], help="of datasets (default: all)")
    arguments = parser.parse_args()
    draw, kills, survived, trials = random.Random(arguments.seed), 0, 0, 0
    with tempfile.TemporaryDirectory() as place:
        prompts = Path(place, "prompts.txt")
        write_prompts(prompts, arguments.prompts)
        whole = {form: undisturbed(prompts, Path(place, form), FORMS[form]) for form in arguments.forms}
        while kills < arguments.kills:
            form = arguments.forms[trials % len(arguments.forms)]
            folder, (seconds, expected) = Path(place, f"killed-{trials}"), whole[form]
            parts = trial(prompts, folder, seconds=seconds, draw=draw, options=FORMS[form])
            same = contents(folder) == expected
            kills, survived, trials = kills + len(parts), survived + same, trials + 1
            said = f"{form}: killed after {', '.join(map(str, parts))} parts: {'identical' if same else 'DIFFERENT'}"
            print(f"{kills:4} {said}", flush=True)
            shutil.rmtree(folder)
    print(f"{kills} kills; {survived} of {trials} datasets identical")
    return 0 if survived == trials else 1


def undisturbed(prompts, folder, options):
    """How many seconds a run takes that nobody kills, and what it makes."""
    began = time.perf_counter()
    failure = finish(start(prompts, folder, *options))
    assert failure is None, failure
    return time.perf_counter() - began, contents(folder)


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
