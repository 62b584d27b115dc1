"""The command ``python -m benchmarks``: parse, run the suites, print and write their reports."""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.options import Options

SUITES = ("speed", "accuracy", "memory")
"""Each is a file of this folder with a function ``run_<suite>(options, command=...)`` that returns a report."""
DEFAULT_SUITES = ("speed", "accuracy")
EPILOG = """examples:
  python -m benchmarks                                    speed and accuracy, demo model and Qwen3-0.6B's shape
  python -m benchmarks --quick                            a tiny model, to see that it runs
  python -m benchmarks --suite speed --shape qwen3-0.6b --length 64 --naive-passes 65
  python -m benchmarks --suite memory --output benchmarks/results

Reports go to stdout and, as Markdown and long CSV, to the output folder. The last line of stdout is JSON. The exit
code is 1 when a check failed. Nothing is downloaded.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the arguments ask for; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parsed = _parser().parse_args(words)
    suites = {"all": SUITES, None: DEFAULT_SUITES}.get(parsed.suite, (parsed.suite,))
    command = shlex.join(["python", "-m", "benchmarks", *words])
    summary = _run(suites, _options(parsed), command=command)
    print(json.dumps(summary))
    return 0 if summary["passed"] else 1


def _run(suites: Sequence[str], options: Options, *, command: str) -> dict[str, Any]:
    """Run the suites in turn, print each report as it is done, and sum them up."""
    from benchmarks.report import to_markdown, write_report

    summary: dict[str, Any] = {"passed": True, "figures": {}, "files": []}
    for suite in suites:
        report = getattr(import_module(f"benchmarks.{suite}"), f"run_{suite}")(options, command=command)
        print(to_markdown(report), flush=True)
        summary["passed"] &= report.passed
        summary["figures"][suite] = {name: float(f"{value:.4g}") for name, value in report.figures.items()}
        summary["files"] += [str(path) for path in write_report(report, options.output)]
    return summary


def _options(parsed: argparse.Namespace) -> Options:
    return Options(
        shapes=(parsed.shape,) if parsed.shape else None,
        length=parsed.length,
        device=parsed.device,
        dtype=parsed.dtype,
        repeats=parsed.repeats or (2 if parsed.quick else 5),
        naive_passes=parsed.naive_passes,
        output=parsed.output,
        quick=parsed.quick,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", choices=(*SUITES, "all"), help="default: speed and accuracy")
    parser.add_argument("--shape", choices=("demo", "tiny", "small", "qwen3-0.6b"), help="default: the suite's own")
    parser.add_argument("--length", type=_length, help="prompt length in tokens, 2 or more; default: the suite's own")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "float64", "bfloat16"))
    parser.add_argument("--repeats", type=_positive, help="interleaved rounds (default: 5, quick: 2)")
    parser.add_argument(
        "--naive-passes", type=_positive, help="time so many forwards of the naive way and extrapolate (default: all)"
    )
    parser.add_argument("--output", type=Path, default=Path(".benchmarks"), help="folder of the reports (.benchmarks)")
    parser.add_argument("--quick", action="store_true", help="tiny model and few rounds; figures mean nothing")
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
