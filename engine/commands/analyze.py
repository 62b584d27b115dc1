"""``mask-impact analyze``: what stands out in a results file."""

import argparse

from engine.commands.arguments import Parser

EXAMPLES = """
examples:
  mask-impact analyze results.csv
  mask-impact analyze results.parquet --top 5 --skip-first
  mask-impact analyze results.parquet --json > findings.json
"""


def build_parser() -> argparse.ArgumentParser:
    """The arguments of ``analyze``."""
    parser = Parser(
        prog="mask-impact analyze",
        description="Show the most impactful tokens, layers, heads and cells of a results file, with statistics per "
        "variant and the profile over layers.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE", help="results file: .csv, .parquet or .jsonl, of any size")
    parser.add_argument("--top", metavar="N", type=_positive, default=5, help="rows per ranking (default: 5)")
    parser.add_argument("--skip-first", action="store_true", help="leave out position 0, often an attention sink")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    return parser


def execute(arguments: argparse.Namespace) -> int:
    """Print the findings in ``arguments.file`` and return 0. Raises ``ResultsError`` for a file that has none."""
    from engine.files import show, write_stdout
    from engine.findings.analysis import analyze
    from engine.findings.report import as_json, as_text
    from engine.tables.results import read_provenance, reading, scan_table

    with reading(arguments.file):
        analysis = analyze(scan_table(arguments.file), top=arguments.top, skip_first=arguments.skip_first)
    provenance = read_provenance(arguments.file)
    if arguments.json:
        write_stdout(as_json(analysis, provenance=provenance))
    else:
        show(as_text(analysis, provenance=provenance), end="")
    return 0


def _positive(text: str) -> int:
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of rows; give 1 or more")
    return number
