"""End the command line at random moments with SIGINT or SIGTERM, and look at what it says and leaves.

    python tests/signals.py --times 300

Each command gets one signal, anywhere between its start and its end. Whatever it was doing, it must end within a few
seconds, with 130 or 143 (or 0, if it was done), without a traceback, and leave nothing half-written behind.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
PATIENCE_S = 60.0
EARLIEST_S = 0.08
"""Before that, the interpreter itself is starting."""
STATUSES = {signal.SIGINT: (130, 0), signal.SIGTERM: (143, 0)}
PROMPT = ("--prompt", "The Eiffel Tower is in", "--device", "cpu")
COMMANDS = {
    "csv": (*PROMPT, "--output", "table.csv"),
    "parquet, streamed": (*PROMPT, "--stream", "--output", "table.parquet"),
    "generic": (*PROMPT, "--route", "generic", "--output", "table.csv"),
    "verify": ("verify", *PROMPT),
    "set": ("--prompts", "prompts.txt", "--device", "cpu", "--output", "set"),
    "models": ("models",),
}


def begin(words, place, **pipes):
    """The command line in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, str(REPOSITORY / "cli.py"), *words]
    return subprocess.Popen(command, cwd=place, env=environment, stderr=subprocess.PIPE, **pipes)


def ended(process, number):
    """Send the signal; the exit status (None if it does not end), what was said, and how long that took."""
    began = time.perf_counter()
    process.send_signal(number)
    try:
        process.wait(timeout=PATIENCE_S)  # its input stays open: an end of that would be an end of its own
        status = process.returncode
    except subprocess.TimeoutExpired:
        process.kill()
        status = None
    seconds = time.perf_counter() - began
    _, said = process.communicate()
    return status, said.decode(), seconds


def complaint(status, said, number, place, before):
    """What is wrong with how a command ended; None if nothing is."""
    if status not in STATUSES[number]:
        return f"status {status}: {said[-2000:]}"
    for word in ("Traceback", "Exception ignored", "Error"):
        if word in said:
            return f"{word}: {said[-2000:]}"
    left = {path.name for path in place.iterdir()} - before - {"table.csv", "table.parquet", "set"}
    return f"left behind: {left}" if left else None


def trial(words, seconds, draw, *, numbers=tuple(STATUSES)):
    """One command, one signal within so many seconds: the moment, the seconds it took to end, and the complaint."""
    number = draw.choice(numbers)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "prompts.txt").write_text("The capital of France is\n" * 300)
        before = {path.name for path in place.iterdir()}
        process = begin(words, place, stdout=subprocess.DEVNULL)
        moment = draw.uniform(EARLIEST_S, seconds)
        time.sleep(moment)
        status, said, lasted = ended(process, number)
        return moment, lasted, complaint(status, said, number, place, before)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=[*COMMANDS])
    arguments = parser.parse_args()
    draw, counts, bad, longest = random.Random(arguments.seed), Counter(), 0, 0.0
    lengths = {}
    for name in arguments.commands:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "prompts.txt").write_text("The capital of France is\n" * 300)
            began = time.perf_counter()
            begin(COMMANDS[name], folder, stdout=subprocess.DEVNULL).communicate()
            lengths[name] = time.perf_counter() - began
    for turn in range(arguments.times):
        name = arguments.commands[turn % len(arguments.commands)]
        moment, lasted, wrong = trial(COMMANDS[name], lengths[name], draw)
        counts[name], longest, bad = counts[name] + 1, max(longest, lasted), bad + (wrong is not None)
        if wrong:
            print(f"{name}, after {moment:.2f} of {lengths[name]:.2f} s: {wrong}", flush=True)
    print(f"{dict(counts)}: {bad} ended badly; the slowest took {longest:.1f} s to end")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
