"""``mask-impact report``: results as one HTML file to look at."""

import argparse

from engine.commands.arguments import Parser

EXAMPLES = """
examples:
  mask-impact report results.parquet --output report.html
  mask-impact report impacts --output report.html --prompts 20
  mask-impact report impacts --output report.html --prompt-ids 3,17
"""


def build_parser() -> argparse.ArgumentParser:
    """The arguments of ``report``."""
    parser = Parser(
        prog="mask-impact report",
        description="Write results as one HTML page that opens offline: the prompt with tokens to click, heat maps of "
        "layers, tokens and heads, the cells as a table, and what produced them.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results", metavar="RESULTS", help="results file (.csv, .parquet or .jsonl) or dataset folder")
    parser.add_argument("--output", metavar="FILE", required=True, help="where the page goes: .html")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--prompts",
        metavar="N",
        type=_count,
        default=50,
        help="of a set: the first N prompts, beside the mean (default: 50)",
    )
    which.add_argument("--prompt-ids", metavar="LIST", help="of a set: these prompts, such as 3,17")
    return parser


def execute(arguments: argparse.Namespace) -> int:
    """Write the page, say how large it is, and return 0. Raises ``ResultsError`` and ``SelectionError``."""
    from engine.files import require_writable, show
    from engine.pages.page import require_page_name, write_report

    require_page_name(arguments.output)
    require_writable(arguments.output)
    ids = None if arguments.prompt_ids is None else [part.strip() for part in arguments.prompt_ids.split(",")]
    size = write_report(arguments.results, arguments.output, prompts=arguments.prompts, prompt_ids=ids)
    show(f"{arguments.output}: {size / 1e6:.2f} MB, opens in a browser, offline")
    return 0


def _count(text: str) -> int:
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 7 else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of prompts; give 1 or more")
    return number
