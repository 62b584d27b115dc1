"""The command ``python -m benchmarks``: parse, run the suites, print and write their reports."""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.options import LeftOut, Options

SUITES = {
    "speed": "time of a table at 7, 64 and 512 tokens, beside naive way and plain forward (2,048 with all or --length)",
    "accuracy": "relative errors of all distances against float64, engine and naive way",
    "memory": "peak memory of a table at 2,048 tokens, beside one plain forward",
    "scaling": "growth of the time with tokens, layers, masked tokens and prompts: the exponents",
    "startup": "time of --help and of the main job as whole processes, and where it goes",
    "peers": "the same table by TransformerLens and by nnsight, checked equal, then timed",
    "sets": "datasets of many prompts: beside plain forwards, rows per second, bytes, memory, two workers",
    "questions": "attention knockout, cuts in all layers, all query positions: beside what plain forwards take",
    "stream": "weights read layer by layer: peak memory and time beside weights in memory, the same bytes",
    "check": "the self-check at load: seconds beside loading, in memory and streamed",
    "analysis": "analyze, and its ways across prompts, on a dataset of 100 million rows: time and peak memory",
    "parity": "largest errors of every family beside Hugging Face: logits, residual streams, tables",
    "cuda": "speed, memory and accuracy on a GPU, float32 and bfloat16 (exit code 2 where there is none)",
}
"""Each is a file of this folder with a function ``run_<suite>(options, command=...)`` that returns a report."""
DEFAULT_SUITES = ("speed", "accuracy")
EXIT_FAILED, EXIT_LEFT_OUT = 1, 2
EXAMPLES = """examples:
  python -m benchmarks                                    speed and accuracy, demo model and Qwen3-0.6B's shape
  python -m benchmarks --quick --suite all                tiny models, to see that everything runs
  python -m benchmarks --suite speed --shape qwen3-0.6b --length 7 2048 --naive-passes 10
  python -m benchmarks --suite memory --output benchmarks/results

Reports go to stdout and, as Markdown and long CSV (and a figure, as SVG), to the output folder. The last line of stdout
is JSON. The exit code is 1 when a check failed, 2 when the suite or device cannot be had here; with --suite all such a
suite is left out by name. The peers and the figure need pip install -e '.[benchmarks]'. Nothing is downloaded.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the arguments ask for; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parsed = _parser().parse_args(words)
    suites = {"all": tuple(SUITES), None: DEFAULT_SUITES}.get(parsed.suite, (parsed.suite,))
    command = shlex.join(["python", "-m", "benchmarks", *words])
    try:
        summary = _run(suites, _options(parsed), command=command)
    except LeftOut as reason:
        print(f"benchmarks: {reason}", file=sys.stderr)
        return EXIT_LEFT_OUT
    print(json.dumps(summary))
    return 0 if summary["passed"] else EXIT_FAILED


def _run(suites: Sequence[str], options: Options, *, command: str) -> dict[str, Any]:
    """Run the suites in turn, print each report as it is done, and sum them up."""
    from benchmarks.illustration import illustrated
    from benchmarks.machine import require_device
    from benchmarks.report import to_markdown, write_report

    require_device(options.device)
    summary: dict[str, Any] = {"passed": True, "missed": [], "left_out": {}, "figures": {}, "files": []}
    for suite in suites:
        try:
            report = getattr(import_module(f"benchmarks.{suite}"), f"run_{suite}")(options, command=command)
        except LeftOut as reason:
            if not options.every_suite:
                raise
            print(f"benchmarks: {reason}", file=sys.stderr)
            summary["left_out"][suite] = str(reason)
            continue
        if report.drawing is None:
            drawing, note = illustrated(report)
            report = replace(report, drawing=drawing, notes=[*report.notes, *filter(None, [note])])
        print(to_markdown(report), flush=True)
        summary["passed"] &= report.passed
        summary["missed"] += [" ".join(verdict.cells[:4]) for verdict in report.verdicts if not verdict.met]
        summary["figures"][suite] = {name: float(f"{value:.4g}") for name, value in report.figures.items()}
        summary["files"] += [str(path) for path in write_report(report, options.output)]
    return summary


def _options(parsed: argparse.Namespace) -> Options:
    return Options(
        shapes=(parsed.shape,) if parsed.shape else None,
        lengths=tuple(parsed.length) if parsed.length else None,
        dtypes=(parsed.dtype,) if parsed.dtype else None,
        device=parsed.device,
        repeats=parsed.repeats or (2 if parsed.quick else 5),
        naive_passes=parsed.naive_passes,
        output=parsed.output,
        every_suite=parsed.suite == "all",
        quick=parsed.quick,
        large=parsed.large,
    )


def _parser() -> argparse.ArgumentParser:
    suites = "\n".join(f"  {name:<9} {text}" for name, text in SUITES.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=f"Measure the program.\n\nsuites:\n{suites}",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--suite", choices=(*SUITES, "all"), help="default: speed and accuracy")
    parser.add_argument("--shape", choices=("demo", "tiny", "small", "qwen3-0.6b"), help="default: the suite's own")
    parser.add_argument(
        "--length", type=_length, nargs="+", help="prompt lengths in tokens, 2 or more; default: the suite's own"
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", choices=("float32", "float64", "bfloat16"), help="default: float32 (cuda: two)")
    parser.add_argument("--repeats", type=_positive, help="interleaved rounds (default: 5, quick: 2)")
    parser.add_argument(
        "--naive-passes",
        type=_positive,
        help="time so many forwards of the naive way and extrapolate (default: all of a small model, else 30 to 3)",
    )
    parser.add_argument("--output", type=Path, default=Path(".benchmarks"), help="folder of the reports (.benchmarks)")
    parser.add_argument("--quick", action="store_true", help="tiny model and few rounds; figures mean nothing")
    parser.add_argument("--large", action="store_true", help="stream: an 8 B shape as well, 16 GB on the disk")
    return parser


def _positive(text: str, *, least: int = 1) -> int:
    value = int(text)
    if value < least:
        raise argparse.ArgumentTypeError(f"{text} is less than {least}")
    return value


def _length(text: str) -> int:
    """A prompt needs a token to mask before the one that is read."""
    return _positive(text, least=2)


if __name__ == "__main__":
    sys.exit(main())
