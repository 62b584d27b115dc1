"""What the stream suite times: a read of the files, runs in fresh processes, and the command line as a whole.

``python -m benchmarks.streamed_runs SETTINGS`` is one such process; SETTINGS and what it prints are JSON.
"""

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.measure import Timing
from engine.kernels.products import cpu_product, keeping_to

ROOT = Path(__file__).parents[1]
NEXT_TOKENS = 5
"""As many as the command line shows: they need the whole unembedding."""
READ_BYTES = 1 << 24


@dataclass(frozen=True, kw_only=True)
class Runs:
    """One way to run: from Python (loading; the first run and the second, after loading), and as a whole command."""

    loading: Timing
    first: Timing
    second: Timing
    command: Timing
    peak_bytes: int
    table: str
    """A digest of the table that every run from Python gave."""


def read_once(folder: Path, *, repeats: int) -> Timing:
    """Seconds to read all weights into one buffer, again and again the same; the first round only warms up."""
    buffer, seconds = memoryview(bytearray(READ_BYTES)), []
    for _ in range(1 + repeats):
        started = time.perf_counter()
        for file in sorted(folder.glob("*.safetensors")):
            with file.open("rb", buffering=0) as stream:
                while stream.readinto(buffer):
                    pass
        seconds.append(time.perf_counter() - started)
    return Timing(tuple(seconds[1:]))


def run_ways(folder: Path, text: str, *, dtype: str, ways: Sequence[bool], repeats: int, output: Path) -> list[Runs]:
    """Runs with the weights streamed (or not) as ``ways`` says, in turn, so many rounds."""
    found: dict[bool, list[dict[str, Any]]] = {way: [] for way in ways}
    for turn in range(repeats):
        for way in ways:
            name = "streamed" if way else "in memory"
            print(f"stream, {dtype}, round {turn + 1} of {repeats}: {name}", file=sys.stderr, flush=True)
            found[way].append(_one_round(folder, text, dtype=dtype, stream=way, output=output))
    return [_runs(found[way]) for way in ways]


def _one_round(folder: Path, text: str, *, dtype: str, stream: bool, output: Path) -> dict[str, Any]:
    """A process from Python and the command."""
    settings = {"folder": str(folder), "text": text, "dtype": dtype, "stream": stream, "product": cpu_product()}
    told = _process("benchmarks.streamed_runs", settings)
    words = ["--model", str(folder), "--prompt", text, "--device", "cpu", "--dtype", dtype, "--output", str(output)]
    return told | _process("benchmarks.launch", {"words": [*words, *(["--stream"] if stream else [])], "cores": None})


def _runs(rounds: list[dict[str, Any]]) -> Runs:
    times = {name: Timing(tuple(told[name] for told in rounds)) for name in ("loading", "first", "second", "seconds")}
    tables = {told["table"] for told in rounds}
    if len(tables) > 1:
        raise RuntimeError("the same run gave two tables")
    command, peak = times.pop("seconds"), max(int(told["peak_bytes"]) for told in rounds)
    return Runs(**times, command=command, peak_bytes=peak, table=tables.pop())


def _process(module: str, settings: dict[str, Any]) -> dict[str, Any]:
    """What a fresh process says in its last line."""
    command = [sys.executable, "-m", module, json.dumps(settings)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure_here(*, folder: str, text: str, dtype: str, stream: bool, product: str) -> dict[str, Any]:
    """Seconds of loading and of two runs, in this process, which should be a fresh one, and the first run's table.

    ``product``: see ``cpu_product``. A process chooses it by measuring, and one that chose another rounds otherwise.
    """
    from engine import AttentionMasker

    marks, tables = [time.perf_counter()], []
    masker = AttentionMasker.from_pretrained(folder, device="cpu", dtype=dtype, stream=stream)
    marks.append(time.perf_counter())
    with keeping_to(product):
        for _ in range(2):
            found = masker.measure(text, next_tokens=NEXT_TOKENS)
            marks.append(time.perf_counter())
            tables.append(found.table().write_csv())
            marks.append(time.perf_counter())
    loading, first, _, second, _ = (end - start for start, end in pairwise(marks))
    digest = hashlib.sha256(tables[0].encode()).hexdigest()
    return {"loading": loading, "first": first, "second": second, "table": digest}


if __name__ == "__main__":
    print(json.dumps(measure_here(**json.loads(sys.argv[1]))))
