"""One fresh process in which a self-check is timed: ``python -m benchmarks.checked SETTINGS``; both ways in JSON.

It imports nothing that imports transformers' modelling code, which is one of the steps.
"""

import json
import sys
import time
from itertools import pairwise


def measure_here(*, folder: str, dtype: str, stream: bool) -> list[float]:
    """Seconds of loading, of the import, of the first and of the second check."""
    import transformers

    from engine.checks.selfcheck import self_check
    from engine.model.checkpoints import load_decoder, open_checkpoint

    architecture = open_checkpoint(folder).family.architecture
    marks = [time.perf_counter()]
    decoder, _ = load_decoder(folder, device="cpu", dtype=dtype, stream=stream)
    marks.append(time.perf_counter())
    getattr(transformers, architecture)
    marks.append(time.perf_counter())
    for _ in range(2):
        self_check(decoder, None)
        marks.append(time.perf_counter())
    return [end - start for start, end in pairwise(marks)]


if __name__ == "__main__":
    print(json.dumps(measure_here(**json.loads(sys.argv[1]))))
