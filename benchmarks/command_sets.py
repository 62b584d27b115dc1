"""Sets through the command line, on the embedded model: rows per second, peak memory, what a second worker gives."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from transformers import AutoTokenizer

from benchmarks.datasets import Disk, disk_of
from benchmarks.measure import Timing
from benchmarks.workloads import DEMO_FOLDER

ROOT = Path(__file__).parents[1]
SERIAL, ONE_WORKER, TWO_WORKERS = "command line", "--workers 1, kept to one core", "--workers 2"
SHORTEST, LONGEST = 5, 20


@dataclass(frozen=True, kw_only=True)
class CommandRun:
    """A run of the command line: as a whole process, and the session that it notes in its manifest."""

    seconds: float
    peak_bytes: int
    manifest: dict[str, Any]

    @property
    def session_s(self) -> float:
        return float(self.manifest["times"]["sessions"][-1]["seconds"])

    @property
    def rows(self) -> int:
        return int(self.manifest["counts"]["rows"])

    @property
    def finished(self) -> int:
        """Prompts that have rows."""
        return int(self.manifest["counts"]["prompts"])


@dataclass(frozen=True, kw_only=True)
class CommandRuns:
    """One way to call the command line on a set of ``size`` prompts, repeated."""

    name: str
    size: int
    runs: tuple[CommandRun, ...]

    @property
    def label(self) -> str:
        return set_label(self.size)

    @property
    def whole(self) -> Timing:
        """Seconds of the whole processes."""
        return Timing(tuple(run.seconds for run in self.runs))

    @property
    def session(self) -> Timing:
        """Seconds from the model on: reading, measuring, writing, and the workers' start if there are any."""
        return Timing(tuple(run.session_s for run in self.runs))

    @property
    def rows(self) -> int:
        return self.runs[0].rows

    @property
    def peak_bytes(self) -> float:
        return median(run.peak_bytes for run in self.runs)


@dataclass(frozen=True, kw_only=True)
class Commanded:
    """All of them; ``small`` and ``large`` are the same command on two sizes of sets."""

    small: CommandRuns
    large: CommandRuns
    one_worker: CommandRuns
    two_workers: CommandRuns
    disk: Disk

    def __iter__(self) -> Iterator[CommandRuns]:
        return iter((self.small, self.large, self.one_worker, self.two_workers))

    @property
    def memory_ratio(self) -> float:
        return self.large.peak_bytes / self.small.peak_bytes

    @property
    def speedup(self) -> float:
        """Of two workers, from the sessions."""
        return self.one_worker.session.median / self.two_workers.session.median


def set_label(size: int) -> str:
    """The name of the embedded model's set of so many prompts."""
    return f"demo, {size:,} prompts of {SHORTEST} to {LONGEST} tokens"


def run_commands(*, small: int, large: int, rounds: int, folder: Path) -> Commanded:
    """Every command in turn, so many rounds."""
    texts = demo_texts(large)
    files = {size: _written(texts[:size], folder / f"{size}.txt") for size in (small, large)}
    calls: dict[str, tuple[int, list[str], int | None]] = {
        "small": (small, [], None),
        "large": (large, [], None),
        "one_worker": (large, ["--workers", "1"], 1),
        "two_workers": (large, ["--workers", "2"], None),
    }
    found: dict[str, list[CommandRun]] = {name: [] for name in calls}
    for turn in range(rounds):
        for name, (size, words, cores) in calls.items():
            print(f"sets, round {turn + 1} of {rounds}: {size} prompts {' '.join(words)}", file=sys.stderr, flush=True)
            found[name].append(_run(files[size], folder / name, words, cores=cores))
    names = {"small": SERIAL, "large": SERIAL, "one_worker": ONE_WORKER, "two_workers": TWO_WORKERS}
    runs = {name: CommandRuns(name=names[name], size=calls[name][0], runs=tuple(found[name])) for name in calls}
    return Commanded(**runs, disk=disk_of(folder / "large"))


def demo_texts(size: int) -> list[str]:
    """Texts of random words of the embedded model's tokenizer, of 5 to 20 tokens; the same ones every time."""
    tokenizer = AutoTokenizer.from_pretrained(DEMO_FOLDER)
    names = sorted(
        name for name in tokenizer.get_vocab() if name[:1] == "Ġ" and name[1:].isascii() and name[1:].isalpha()
    )
    random = Random(0)
    texts: list[str] = []
    while len(texts) < size:
        drawn = [" ".join(_words(names, random)) for _ in range(size)]
        lengths = map(len, tokenizer(drawn)["input_ids"])
        texts += [text for text, length in zip(drawn, lengths, strict=True) if SHORTEST <= length <= LONGEST]
    return texts[:size]


def _words(names: Sequence[str], random: Random) -> list[str]:
    """Words that are a token each after a space, the first of which may be several without one."""
    return [name[1:] for name in random.choices(names, k=random.randint(SHORTEST, LONGEST))]


def _written(texts: Sequence[str], path: Path) -> Path:
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


def _run(prompts: Path, output: Path, words: Sequence[str], *, cores: int | None) -> CommandRun:
    """One run into a new folder, from a small process that can tell its memory from this one's."""
    shutil.rmtree(output, ignore_errors=True)
    command = ["--prompts", str(prompts), "--output", str(output), "--quiet", "--device", "cpu", *words]
    launch = [sys.executable, "-m", "benchmarks.launch", json.dumps({"words": command, "cores": cores})]
    done = subprocess.run(launch, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    told = json.loads(done.stdout.splitlines()[-1])
    manifest = json.loads((output / "manifest.json").read_text(encoding="utf-8"))
    return CommandRun(seconds=told["seconds"], peak_bytes=int(told["peak_bytes"]), manifest=manifest)
