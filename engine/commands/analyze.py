"""``mask-impact analyze``: what stands out in a results file."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.commands.arguments import Parser
from engine.errors import ResultsError

if TYPE_CHECKING:
    import polars as pl

EXAMPLES = """
examples:
  mask-impact analyze results.csv
  mask-impact analyze results.parquet --top 5 --skip-first
  mask-impact analyze impacts
  mask-impact analyze impacts --by text --min-count 20
  mask-impact analyze impacts --by head --among 5 --output heads.csv
  mask-impact analyze impacts other_impacts
  mask-impact analyze results.parquet --json > findings.json
"""
WAYS = ("text", "position", "layer", "head")


def build_parser() -> argparse.ArgumentParser:
    """The arguments of ``analyze``."""
    parser = Parser(
        prog="mask-impact analyze",
        description="Show the most impactful tokens, layers, heads and cells of a results file or a dataset, with "
        "statistics per variant and the profile over layers; of effects on the answer, the strongest. Across prompts: "
        "means by token text, place, layer or head. Of two results: what changed.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "file", metavar="RESULTS", help="results file (.csv, .parquet or .jsonl) or folder of a dataset, of any size"
    )
    parser.add_argument("other", metavar="OTHER", nargs="?", help="results to compare with: what changed from RESULTS")
    parser.add_argument("--top", metavar="N", type=_positive, default=5, help="rows per ranking (default: 5)")
    parser.add_argument("--skip-first", action="store_true", help="leave out position 0, often an attention sink")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.add_argument("--output", metavar="FILE", help="also write the findings as rows: .csv, .parquet or .json")
    across = parser.add_argument_group("across prompts")
    across.add_argument("--by", choices=WAYS, help="means over prompts, with 95 %% confidence intervals")
    across.add_argument(
        "--among", metavar="K", type=_positive, help="with --by head: how often it is among the K of a prompt (10)"
    )
    across.add_argument(
        "--min-count", metavar="N", type=_positive, help="leave out what fewer prompts have (5, of under 30 prompts 1)"
    )
    across.add_argument(
        "--bootstrap", metavar="N", type=_resamples, help="intervals from N resamples (under 30 prompts: 2,000)"
    )
    across.add_argument("--seed", metavar="S", type=_seed, default=0, help="of the bootstrap (default: 0)")
    return parser


def execute(arguments: argparse.Namespace) -> int:
    """Print the findings in ``arguments.file`` and return 0. Raises ``ResultsError`` for results that have none."""
    _require_fit(arguments)
    from engine.findings.tidy import check_findings_path, tidy, write_findings

    if arguments.output:
        check_findings_path(arguments.output)
    found, said, provenance = _compared(arguments) if arguments.other else _analyzed(arguments)
    if arguments.output:
        write_findings(tidy(found), arguments.output, provenance=provenance)
    from engine.files import show, write_stdout

    if arguments.json:
        write_stdout(said)
    else:
        show(said, end="")
    return 0


def _require_fit(arguments: argparse.Namespace) -> None:
    """Raise ``ResultsError`` for options that do nothing here."""
    if not (arguments.by or arguments.other):
        for name in ("min_count", "bootstrap"):
            if getattr(arguments, name) is not None:
                raise ResultsError(f"--{name.replace('_', '-')} is about many prompts; add --by {', '.join(WAYS)}")
    if arguments.among is not None and (arguments.by != "head" or arguments.other):
        raise ResultsError("--among counts how often heads matter; give it with --by head, of one result set")


def _analyzed(arguments: argparse.Namespace) -> "tuple[Any, str, Any]":
    """The findings in one set of results, in words, and what produced it."""
    from engine.findings import across, across_report, analysis, answers, answers_report, report
    from engine.tables.columns import is_effects
    from engine.tables.results import reading

    with reading(arguments.file):
        lazy, provenance, num_prompts = _opened(arguments.file)
        if arguments.by:
            among = {} if arguments.among is None else {"among": arguments.among}
            lengths = _lengths(arguments.file)
            found: Any = across.analyze_across(lazy, by=arguments.by, lengths=lengths, **among, **_choices(arguments))
            told: Any = across_report
        else:
            effects = is_effects(lazy.collect_schema().names())
            told = answers_report if effects else report
            analyze: Any = answers.analyze_answers if effects else analysis.analyze
            found = analyze(lazy, top=arguments.top, skip_first=arguments.skip_first, num_prompts=num_prompts)
    if arguments.json:
        return found, told.as_json(found, provenance=provenance), provenance
    top = {"top": arguments.top} if arguments.by else {}
    return found, told.as_text(found, provenance=provenance, **top), provenance


def _compared(arguments: argparse.Namespace) -> "tuple[Any, str, Any]":
    """What changed from one set of results to the other, in words, and what produced them."""
    from engine.findings import across_report
    from engine.findings.comparison import compare
    from engine.tables.results import reading

    paths = (arguments.file, arguments.other)
    with reading(paths[0]):
        first, origin_a, _ = _opened(paths[0])
    with reading(paths[1]):
        second, origin_b, _ = _opened(paths[1])
        ways = None if arguments.by is None else (arguments.by,)
        lengths = (_lengths(paths[0]), _lengths(paths[1]))
        found = compare(first, second, by=ways, lengths=lengths, **_choices(arguments))
    origins = {"a": origin_a, "b": origin_b}
    if arguments.json:
        return found, across_report.comparison_as_json(found, provenances=origins), origins
    return found, across_report.comparison_as_text(found, top=arguments.top, names=paths), origins


def _choices(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that both ways across prompts have."""
    from engine.findings.intervals import Bootstrap

    drawn = None if arguments.bootstrap is None else Bootstrap(arguments.bootstrap, arguments.seed)
    return {"min_count": arguments.min_count, "bootstrap": drawn, "skip_first": arguments.skip_first}


def _lengths(results: str) -> "pl.DataFrame | None":
    """How many tokens each prompt of a dataset has; None where nothing tells."""
    from engine.datasets.reading import prompt_lengths

    return prompt_lengths(results) if Path(results).is_dir() else None


def _opened(results: str) -> "tuple[pl.LazyFrame, dict[str, Any] | None, int | None]":
    """A file or a dataset, unread, what produced it, and the number of prompts of a dataset."""
    from engine.datasets.reading import dataset_provenance, read_results
    from engine.tables.results import read_provenance, scan_table

    if Path(results).is_dir():
        provenance = dataset_provenance(results)
        return read_results(results, partial=True, verify=True), provenance, provenance["prompts"]
    return scan_table(results), read_provenance(results), None


def _positive(text: str) -> int:
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of rows; give 1 or more")
    return number


def _resamples(text: str) -> int:
    number = _positive(text)
    if number < 100:
        raise argparse.ArgumentTypeError(f"{text!r} is too few for percentiles; give 100 or more")
    return number


def _seed(text: str) -> int:
    return 0 if text == "0" else _positive(text)
