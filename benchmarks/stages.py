"""The main job of the command line, stage by stage, in a fresh process: ``python -m benchmarks.stages FILE PROMPT``.

Prints one JSON line: seconds of every stage. Imports nothing heavy before its clock runs. The stages are those of
``engine.commands.run``; what differs is that everything is imported before the loading begins, also what the command
line imports when it is first used: transformers' classes of config and tokenizer, and what writes the table.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

FRAMEWORKS, OWN, LOADING, COMPUTING, WRITING = (
    "importing torch and transformers",
    "importing the engine and what it needs",
    "loading",
    "computing",
    "writing",
)
STAGES = (FRAMEWORKS, OWN, LOADING, COMPUTING, WRITING)
Result = TypeVar("Result")


def run_stages(path: str, prompt: str) -> dict[str, float]:
    """Run the job once and return the seconds of each stage."""
    seconds: dict[str, float] = {}
    _timed(seconds, FRAMEWORKS, _import_frameworks)
    masker_class = _timed(seconds, OWN, _import_engine)
    masker = _timed(seconds, LOADING, lambda: masker_class.from_pretrained(device="cpu"))
    impact = _timed(seconds, COMPUTING, lambda: masker.measure(prompt, next_tokens=5))
    _timed(seconds, WRITING, lambda: _write(impact, path))
    return seconds


def _timed(seconds: dict[str, float], stage: str, work: Callable[[], Result]) -> Result:
    start = time.perf_counter()
    result = work()
    seconds[stage] = time.perf_counter() - start
    return result


def _import_frameworks() -> None:
    import torch
    import transformers

    del torch, transformers


def _import_engine() -> Any:
    import transformers

    import engine.tables.results
    from engine.experiment import AttentionMasker

    del engine
    assert transformers.Qwen3Config
    assert transformers.AutoTokenizer
    return AttentionMasker


def _write(impact: Any, path: str) -> None:
    from engine.tables.results import write_table

    write_table(impact.table(), path)


if __name__ == "__main__":
    print(json.dumps(run_stages(*sys.argv[1:])))
