"""The default command: a prompt goes in, the impact table comes out."""

import argparse
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from engine.commands import pictures, prompt_set, questions
from engine.commands.arguments import Parser
from engine.commands.choices import (
    EMBEDDED,
    EXAMPLE_PROMPT,
    add_check_option,
    add_model_options,
    add_placement_options,
    add_route_option,
    describe_model,
    loaded_masker,
)
from engine.errors import ResultsError
from engine.files import show
from engine.questions.indices import parse_indices

if TYPE_CHECKING:
    from engine.experiment import AttentionMasker
    from engine.questions.question import Question
    from engine.runs.measuring import Found

DEFAULT_FILE = "mask_impact.csv"
DESCRIPTION = """Which tokens does the model use, in which layer, through which head?

For every layer and token, set the attention logits to that token to -inf and measure at the final position how far
the layer's residual update (Full), its attention (Attn) and every head (Head_N) move."""

EPILOG = f"""examples:
  mask-impact --prompt {EXAMPLE_PROMPT!r}
  mask-impact --prompt {EXAMPLE_PROMPT!r} --model Qwen/Qwen3-0.6B --device cuda --output eiffel.parquet
  mask-impact --prompt {EXAMPLE_PROMPT!r} --layers 0-5,9 --tokens 1,3-4 --output - | head
  mask-impact --prompts questions.jsonl --output impacts --id-column id
  mask-impact --prompt {EXAMPLE_PROMPT!r} --read output --cut window:3 --hidden-from query --answer " Paris"

other commands (each has its own --help; this one is also called run):
  mask-impact verify          check cells against unmodified transformers layers
  mask-impact analyze RESULTS most impactful tokens, layers and heads of a results file or a dataset
  mask-impact plot RESULTS    a figure of them: .png, .svg, .pdf or .html
  mask-impact report RESULTS  a page of them that opens offline
  mask-impact models          architectures that are supported, and by which route
"""


def build_parser() -> Parser:
    parser = Parser(
        prog="mask-impact",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", metavar="TEXT", help="the text to read")
    source.add_argument(
        "--prompts", metavar="FILE", help=".txt (one a line), .jsonl, .csv, .parquet, or - for lines of standard input"
    )
    parser.add_argument("--layers", metavar="LIST", help="layers to cut, such as 0-5,9 (default: all)")
    parser.add_argument("--tokens", metavar="LIST", help="token positions to mask, such as 1,3-4 (default: all)")
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="where the table goes: .csv, .parquet or .jsonl, or - for CSV on stdout (default: mask_impact.csv); of a "
        "set, the folder for its dataset (default: mask_impacts)",
    )
    parser.add_argument("--quiet", action="store_true", help="say nothing but errors")
    questions.add_options(parser)
    prompt_set.add_options(parser)
    pictures.add_options(parser)
    add_model_options(parser)
    add_route_option(parser)
    add_placement_options(parser)
    add_check_option(parser)
    return parser


def execute(arguments: argparse.Namespace) -> int:
    """Measure the prompt, write the table, print the summary (on stderr when the table goes to stdout); or the set."""
    question = questions.asked(arguments)
    pictures.check(arguments)
    if arguments.prompts is not None:
        return prompt_set.execute(arguments, question)
    prompt_set.refuse_options(arguments)
    arguments.output = arguments.output or DEFAULT_FILE
    layers = None if arguments.layers is None else parse_indices(arguments.layers, what="--layers")
    tokens = None if arguments.tokens is None else parse_indices(arguments.tokens, what="--tokens")
    from engine.tables.results import check_writable, write_table

    check_writable(arguments.output)
    questions.require_rule(question, tokens)
    watch = iter if arguments.quiet else _progress
    started = time.perf_counter()
    masker = loaded_masker(arguments)
    loaded = time.perf_counter()
    choices = questions.choices_of(arguments)
    found = masker.measure(arguments.prompt, layers=layers, tokens=tokens, next_tokens=5, watch=watch, **choices)
    measured = time.perf_counter()
    table = found.table()
    provenance = _provenance(arguments, masker, question)
    write_table(table, arguments.output, provenance=provenance)
    drawn = pictures.draw(arguments, table, provenance)
    loading, run = loaded - started, measured - loaded
    if not arguments.quiet:
        report = _report(arguments, found, question, origin=provenance, loading=loading, run=run)
        _show("\n".join((report, *drawn)), arguments.output)
    return 0


def _provenance(arguments: argparse.Namespace, masker: "AttentionMasker", question: "Question") -> dict[str, Any]:
    """What produces the table: the model and how it runs, the prompt, the question, and the versions at work."""
    import torch
    import transformers

    return {
        "description": describe_model(arguments),
        "model": arguments.model or EMBEDDED,
        "layers": len(masker.view.layers),
        "heads": masker.view.heads.num_heads,
        "route": masker.route,
        "dtype": arguments.dtype,
        "device": str(masker.view.device),
        "prompt": arguments.prompt,
        "question": question.words(),
        "checked": masker.checked,
        "mask_impact": _version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _version() -> str | None:
    """The version of this program; None where it runs from a folder without being installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("mask-impact")
    except PackageNotFoundError:
        return None


def _show(report: str, output: str) -> None:
    """Print the report where the table does not go. Raises ``ResultsError`` that says where the table is."""
    if output == "-":
        show(report, stream="stderr")
        return
    try:
        show(report)
    except ResultsError as error:
        raise ResultsError(f"the table is in {output}, but its summary cannot be shown: {error}") from error


def _report(
    arguments: argparse.Namespace,
    found: "Found",
    question: "Question",
    *,
    origin: dict[str, Any],
    loading: float,
    run: float,
) -> str:
    """The summary between what produced it and what it took."""
    from engine.summaries.ink import ink_of
    from engine.summaries.naive import naive_passes
    from engine.summary import summarize

    shape = "{layers} layers x {heads} heads, {dtype} on {device}, {route} route".format_map(origin)
    shape += "" if origin["checked"] else ", unchecked"
    place = "stdout" if arguments.output == "-" else arguments.output
    naive = naive_passes(found, question, num_layers=origin["layers"])
    return "\n".join(
        (
            f"Model   {origin['description']}; {shape}",
            summarize(found, question, ink=ink_of(sys.stderr if arguments.output == "-" else sys.stdout)),
            "",
            f"{found.num_rows:,} rows -> {place}",
            f"{run:.3f} s for what takes {naive.count:,} forward passes the naive way ({naive.reason}); "
            f"loading the model took {loading:.2f} s",
        )
    )


def _progress(layers: Iterable[Any]) -> Iterator[Any]:
    """A bar on stderr, if a person watches and the run lasts longer than two seconds."""
    from tqdm import tqdm

    return iter(tqdm(layers, desc="layers", unit="layer", delay=2.0, leave=False, disable=None, file=sys.stderr))
