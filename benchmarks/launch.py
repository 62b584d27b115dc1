"""The command line as a process of its own, with its peak memory: ``python -m benchmarks.launch SETTINGS``.

SETTINGS is JSON: ``words`` for the command line, and ``cores``, to which it is kept if that is not null. Prints one
JSON line: seconds from start to end, and the peak of its resident memory. This process imports nothing, because what
it holds when it starts another counts as that one's memory.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
KEPT = """import os, sys
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:{cores}])
os.cpu_count = lambda: {cores}
from engine.commands import program
program()
"""
"""Both what the system allows and what libraries and engine are told; threads are started by what they are told."""


def launched(words: list[str], cores: int | None) -> dict[str, float]:
    """Seconds and peak bytes of a run. Raises ``CalledProcessError``."""
    import resource

    program = ["cli.py"] if cores is None else ["-c", KEPT.format(cores=cores)]
    started = time.perf_counter()
    subprocess.run([sys.executable, *program, *words], cwd=ROOT, env=_environment(cores), check=True)
    seconds = time.perf_counter() - started
    unit = 1 if sys.platform == "darwin" else 1024
    return {"seconds": seconds, "peak_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit}


def _environment(cores: int | None) -> dict[str, str]:
    """The variables of a run that may use so many threads in every library."""
    names = () if cores is None else ("OMP_NUM_THREADS", "POLARS_MAX_THREADS", "RAYON_NUM_THREADS")
    return {**os.environ, **dict.fromkeys(names, str(cores))}


def main(settings: dict[str, Any]) -> None:
    print(json.dumps(launched(settings["words"], settings["cores"])))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
