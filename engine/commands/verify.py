"""``verify``: the quick check of one layer and one token, against the unmodified layer of transformers."""

import argparse
from collections.abc import Iterator
from random import Random
from typing import TYPE_CHECKING

from engine.commands.arguments import Parser
from engine.commands.choices import EXAMPLE_PROMPT, add_model_options, describe_model
from engine.errors import SelectionError

if TYPE_CHECKING:
    from torch import nn

    from engine.experiment import AttentionMasker
    from engine.runs.impact import Impact
    from engine.verification import CellCheck

EXAMPLES = """examples:
  mask-impact verify
  mask-impact verify --layer 3 --token 2 --prompt "The capital of France is"
  mask-impact verify --model Qwen/Qwen3-0.6B --samples 50
"""


def build_parser() -> Parser:
    parser = Parser(
        prog="mask-impact verify",
        description="Measure cells with the engine and with unmodified transformers layers; exit 1 if they disagree.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--prompt", metavar="TEXT", default=EXAMPLE_PROMPT, help="text to read (default: %(default)r)")
    parser.add_argument("--layer", type=int, default=0, metavar="L", help="layer to check (default: 0)")
    parser.add_argument("--token", type=int, default=0, metavar="P", help="position of the masked token (default: 0)")
    parser.add_argument("--samples", type=int, default=0, metavar="N", help="check N random cells as well")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the random cells (default: 0)")
    add_model_options(parser)
    return parser


def execute(arguments: argparse.Namespace) -> int:
    """Show the walk through one cell and its check, then the random cells; 1 if any cell disagrees."""
    from engine.experiment import AttentionMasker
    from engine.files import show
    from engine.model.checkpoints import load_model
    from engine.runs.impact import Impact
    from engine.verification import check_cell

    if arguments.samples < 0:
        raise SelectionError(f"--samples {arguments.samples} is not a number of cells; give 0 or more")
    model, tokenizer = load_model(arguments.model, device=arguments.device, dtype=arguments.dtype)
    masker = AttentionMasker(model, tokenizer, route="fused", check=False)
    impact = masker.measure(arguments.prompt)
    assert isinstance(impact, Impact)
    first = check_cell(model, impact, layer=arguments.layer, token=arguments.token)
    tokens = "  ".join(f"{position} {piece!r}" for position, piece in enumerate(impact.prompt.pieces))
    decoder = masker.decoder
    shape = f"{len(decoder.layers)} layers x {decoder.heads.num_heads} heads, {arguments.dtype} on {decoder.device}"
    parts = [f"Model   {describe_model(arguments)}; {shape}", f"Prompt  {tokens}", ""]
    parts += [*_walk(masker, impact, first), "", _cell_table(first)]
    checks = [first, *_random_cells(model, impact, first, arguments)]
    parts += [_check_line(check) for check in checks[1:]]
    show("\n".join([*parts, *_verdict(checks)]))
    return 0 if all(check.agrees for check in checks) else 1


def _walk(masker: "AttentionMasker", impact: "Impact", check: "CellCheck") -> Iterator[str]:
    """The shape of every tensor on the way, and what the mask does to the attention."""
    from engine.walkthrough import walk

    piece = impact.prompt.pieces[check.token]
    yield f"Layer {check.layer}, masked token {check.token} {piece!r}, query {len(impact.prompt) - 1}\n"
    stops = {}
    for stop in walk(masker.decoder, impact.prompt, layer=check.layer, token=check.token):
        stops[stop.name] = stop.value
        yield f"  {stop.name:<36} {stop.axes:<14} {tuple(stop.value.shape)}"
    before, after = (stops[name][..., check.token] for name in ("pattern", "masked pattern"))
    yield f"\n  attention to the token, by head, before: {', '.join(f'{a:.4f}' for a in before.flatten().tolist())}"
    yield f"  largest of these under the mask: {after.max():g}; the other keys share 1"


def _cell_table(check: "CellCheck") -> str:
    """Both opinions on every variant, side by side."""
    from engine.tables.table import variant_names

    lines = [f"  {'variant':<8} {'distance':<8} {'engine':>14} {'transformers':>14} {'relative error':>15}"]
    names = variant_names(len(check.engine) - 2)
    for name, ours, theirs, error in zip(names, check.engine, check.reference, check.relative_errors, strict=True):
        for column, distance in enumerate(("L2", "cosine")):
            numbers = f"{ours[column]:>14.6e} {theirs[column]:>14.6e} {error[column]:>15.1e}"
            lines.append(f"  {name if column == 0 else '':<8} {distance:<8} {numbers}")
    return "\n".join(lines)


def _random_cells(
    model: "nn.Module", impact: "Impact", first: "CellCheck", arguments: argparse.Namespace
) -> list["CellCheck"]:
    """Checks of random cells that are defined, each once, other than the first."""
    from engine.verification import check_cell

    defined = [
        (layer, token)
        for layer, cells in enumerate(impact.distances)
        for token, cell in enumerate(cells)
        if cell[0, 0] == cell[0, 0] and (layer, token) != (first.layer, first.token)
    ]
    chosen = Random(arguments.seed).sample(defined, min(arguments.samples, len(defined)))
    return [check_cell(model, impact, layer=layer, token=token) for layer, token in sorted(chosen)]


def _check_line(check: "CellCheck") -> str:
    word = "agrees" if check.agrees else "DISAGREES"
    error = f"largest relative error {check.relative_errors.max():.1e}"
    return f"  layer {check.layer:>3}, token {check.token:>4}: {word}, {error}"


def _verdict(checks: list["CellCheck"]) -> Iterator[str]:
    """How many cells agree, and whether the mask bites in any of them."""
    tolerance = checks[0].tolerance
    right = sum(check.agrees for check in checks)
    yield (
        f"\n{right} of {len(checks)} cells agree within {tolerance.relative:g} relative "
        f"plus {tolerance.resolution:g} of the baseline vector ({tolerance.reason})"
    )
    if any(check.bites for check in checks):
        yield "the mask bites: engine and transformers both see it move the output"
    elif right < len(checks):
        yield "the mask does not bite in the engine"
    else:
        yield "the mask moves nothing here: the query does not attend to the token"
