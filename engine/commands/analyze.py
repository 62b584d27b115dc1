"""``mask-impact analyze``: what stands out in a results file."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.commands.arguments import Parser

if TYPE_CHECKING:
    import polars as pl

EXAMPLES = """
examples:
  mask-impact analyze results.csv
  mask-impact analyze results.parquet --top 5 --skip-first
  mask-impact analyze impacts
  mask-impact analyze results.parquet --json > findings.json
"""


def build_parser() -> argparse.ArgumentParser:
    """The arguments of ``analyze``."""
    parser = Parser(
        prog="mask-impact analyze",
        description="Show the most impactful tokens, layers, heads and cells of a results file or a dataset, with "
        "statistics per variant and the profile over layers; of effects on the answer, the strongest.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "file", metavar="RESULTS", help="results file (.csv, .parquet or .jsonl) or folder of a dataset, of any size"
    )
    parser.add_argument("--top", metavar="N", type=_positive, default=5, help="rows per ranking (default: 5)")
    parser.add_argument("--skip-first", action="store_true", help="leave out position 0, often an attention sink")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    return parser


def execute(arguments: argparse.Namespace) -> int:
    """Print the findings in ``arguments.file`` and return 0. Raises ``ResultsError`` for results that have none."""
    from engine.files import show, write_stdout
    from engine.findings import analysis, answers, answers_report, report
    from engine.tables.columns import is_effects
    from engine.tables.results import reading

    kind: Any = (analysis.analyze, report)
    with reading(arguments.file):
        lazy, provenance, num_prompts = _opened(arguments.file)
        if is_effects(lazy.collect_schema().names()):
            kind = (answers.analyze_answers, answers_report)
        analyze, told = kind
        found = analyze(lazy, top=arguments.top, skip_first=arguments.skip_first, num_prompts=num_prompts)
    if arguments.json:
        write_stdout(told.as_json(found, provenance=provenance))
    else:
        show(told.as_text(found, provenance=provenance), end="")
    return 0


def _opened(results: str) -> "tuple[pl.LazyFrame, dict[str, Any] | None, int | None]":
    """A file or a dataset, unread, what produced it, and the number of prompts of a dataset."""
    from engine.datasets.reading import dataset_provenance, read_results
    from engine.tables.results import read_provenance, scan_table

    if Path(results).is_dir():
        provenance = dataset_provenance(results)
        return read_results(results, partial=True), provenance, provenance["prompts"]
    return scan_table(results), read_provenance(results), None


def _positive(text: str) -> int:
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of rows; give 1 or more")
    return number
