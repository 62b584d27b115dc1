"""The default command: a prompt goes in, the impact table comes out."""

import argparse
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from engine.commands import prompt_set
from engine.commands.arguments import Parser
from engine.commands.choices import EMBEDDED, EXAMPLE_PROMPT, add_model_options, describe_model
from engine.errors import ResultsError
from engine.files import show
from engine.questions.indices import parse_indices

if TYPE_CHECKING:
    from engine.experiment import AttentionMasker, Impact
    from engine.sweeps.readout import Readout

DEFAULT_FILE = "mask_impact.csv"
DESCRIPTION = """Which tokens does the model use, in which layer, through which head?

For every layer and token, set the attention logits to that token to -inf and measure at the final position how far
the layer's residual update (Full), its attention (Attn) and every head (Head_N) move."""

EPILOG = f"""examples:
  mask-impact --prompt {EXAMPLE_PROMPT!r}
  mask-impact --prompt {EXAMPLE_PROMPT!r} --model Qwen/Qwen3-0.6B --device cuda --output eiffel.parquet
  mask-impact --prompt {EXAMPLE_PROMPT!r} --layers 0-5,9 --tokens 1,3-4 --output - | head
  mask-impact --prompts questions.jsonl --output impacts --id-column id

other commands (each has its own --help; this one is also called run):
  mask-impact verify          check cells against unmodified transformers layers
  mask-impact analyze RESULTS most impactful tokens, layers and heads of a results file or a dataset
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
    prompt_set.add_options(parser)
    add_model_options(parser)
    return parser


def execute(arguments: argparse.Namespace) -> int:
    """Measure the prompt, write the table, print the summary (on stderr when the table goes to stdout); or the set."""
    if arguments.prompts is not None:
        return prompt_set.execute(arguments)
    prompt_set.refuse_options(arguments)
    arguments.output = arguments.output or DEFAULT_FILE
    layers = None if arguments.layers is None else parse_indices(arguments.layers, what="--layers")
    tokens = None if arguments.tokens is None else parse_indices(arguments.tokens, what="--tokens")
    from engine.tables.results import check_writable, write_table

    check_writable(arguments.output)
    from engine.experiment import AttentionMasker

    watch = iter if arguments.quiet else _progress
    started = time.perf_counter()
    masker = AttentionMasker.from_pretrained(arguments.model, device=arguments.device, dtype=arguments.dtype)
    loaded = time.perf_counter()
    impact = masker.measure(arguments.prompt, layers=layers, tokens=tokens, next_tokens=5, watch=watch)
    measured = time.perf_counter()
    table = impact.table()
    provenance = _provenance(arguments, masker)
    write_table(table, arguments.output, provenance=provenance)
    loading, run = loaded - started, measured - loaded
    if not arguments.quiet:
        report = _report(arguments, impact, origin=provenance, rows=table.height, loading=loading, run=run)
        _show(report, arguments.output)
    return 0


def _provenance(arguments: argparse.Namespace, masker: "AttentionMasker") -> dict[str, Any]:
    """What produces the table: the model and how it runs, the prompt, and the versions at work."""
    import torch
    import transformers

    return {
        "description": describe_model(arguments),
        "model": arguments.model or EMBEDDED,
        "layers": len(masker.decoder.layers),
        "heads": masker.decoder.heads.num_heads,
        "dtype": arguments.dtype,
        "device": str(masker.decoder.device),
        "prompt": arguments.prompt,
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
    arguments: argparse.Namespace, impact: "Impact", *, origin: dict[str, Any], rows: int, loading: float, run: float
) -> str:
    """The summary between what produced it and what it took."""
    from engine.summary import naive_passes, summarize

    shape = "{layers} layers x {heads} heads, {dtype} on {device}".format_map(origin)
    place = "stdout" if arguments.output == "-" else arguments.output
    return "\n".join(
        (
            f"Model   {origin['description']}; {shape}",
            summarize(impact),
            "",
            f"{rows:,} rows -> {place}",
            f"{run:.3f} s for what takes {naive_passes(impact):,} forward passes the naive way "
            f"(layers x (masked tokens + 1): {len(impact.layers)} x ({len(impact.tokens)} + 1)); "
            f"loading the model took {loading:.2f} s",
        )
    )


def _progress(layers: "Iterable[Readout]") -> "Iterator[Readout]":
    """A bar on stderr, if a person watches and the run lasts longer than two seconds."""
    from tqdm import tqdm

    return iter(tqdm(layers, desc="layers", unit="layer", delay=2.0, leave=False, disable=None, file=sys.stderr))
