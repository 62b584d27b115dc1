"""``verify``: the quick check of one layer and one token, against the unmodified layer of transformers."""

import argparse
from random import Random
from typing import TYPE_CHECKING

from engine.commands.arguments import Parser
from engine.commands.choices import EXAMPLE_PROMPT, add_model_options, describe_model
from engine.errors import SelectionError

if TYPE_CHECKING:
    from torch import nn

    from engine.experiment import AttentionMasker
    from engine.prompts import Prompt
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
    """Print the walk through one cell and its check, then the random cells; 1 if any cell disagrees."""
    from engine.checkpoints import load_model
    from engine.experiment import AttentionMasker

    if arguments.samples < 0:
        raise SelectionError(f"--samples {arguments.samples} is not a number of cells; give 0 or more")
    model, tokenizer = load_model(arguments.model, device=arguments.device, dtype=arguments.dtype)
    masker = AttentionMasker(model, tokenizer)
    prompt = masker.read(arguments.prompt)
    print(f"Model   {describe_model(arguments)}")
    print("Prompt  " + "  ".join(f"{position} {piece!r}" for position, piece in enumerate(prompt.pieces)))
    checks = [_first_cell(model, masker, prompt, arguments)]
    checks += _random_cells(model, masker, prompt, arguments)
    return _verdict(checks)


def _first_cell(
    model: "nn.Module", masker: "AttentionMasker", prompt: "Prompt", arguments: argparse.Namespace
) -> "CellCheck":
    from engine.verification import check_cell
    from engine.walkthrough import walk

    check = check_cell(model, masker, prompt, layer=arguments.layer, token=arguments.token)
    piece = prompt.pieces[arguments.token]
    print(f"\nLayer {arguments.layer}, masked token {arguments.token} {piece!r}, query {len(prompt) - 1}\n")
    stops = {stop.name: stop for stop in walk(masker.decoder, prompt, layer=arguments.layer, token=arguments.token)}
    for stop in stops.values():
        print(f"  {stop.name:<36} {stop.axes:<12} {tuple(stop.value.shape)}")
    print("\n" + _cell_table(check) + "\n")
    before = stops["pattern"].value[..., arguments.token]
    after = stops["masked pattern"].value[..., arguments.token]
    rows = stops["masked pattern"].value.sum(-1)
    print(f"  attention to the token, mean over heads: {before.mean():.6f} before, {after.mean():.6f} under the mask")
    print(f"  largest weight left on it: {after.max():g}; the rest of each head sums to {rows.min():.6f} or more")
    return check


def _cell_table(check: "CellCheck") -> str:
    """Both opinions on every variant, side by side."""
    from engine.table import variant_names

    lines = [f"  {'variant':<8} {'distance':<8} {'engine':>14} {'transformers':>14} {'relative error':>15}"]
    names = variant_names(len(check.engine) - 2)
    for name, ours, theirs, error in zip(names, check.engine, check.reference, check.relative_errors, strict=True):
        for column, distance in enumerate(("L2", "cosine")):
            numbers = f"{ours[column]:>14.6e} {theirs[column]:>14.6e} {error[column]:>15.1e}"
            lines.append(f"  {name if column == 0 else '':<8} {distance:<8} {numbers}")
    return "\n".join(lines)


def _random_cells(
    model: "nn.Module", masker: "AttentionMasker", prompt: "Prompt", arguments: argparse.Namespace
) -> list["CellCheck"]:
    from engine.verification import check_cell

    random = Random(arguments.seed)
    checks = []
    for _ in range(arguments.samples):
        layer, token = random.randrange(len(masker.decoder.layers)), random.randrange(len(prompt))
        check = check_cell(model, masker, prompt, layer=layer, token=token)
        word = "agrees" if check.agrees else "DISAGREES"
        print(f"  layer {layer:>3}, token {token:>4}: {word}, largest relative error {check.relative_errors.max():.1e}")
        checks.append(check)
    return checks


def _verdict(checks: list["CellCheck"]) -> int:
    """One line; the mask bites when some distance of some checked cell is not zero in both opinions."""
    tolerance = checks[0].tolerance
    bites = any(bool((check.engine > 0).any() and (check.reference > 0).any()) for check in checks)
    wrong = sum(not check.agrees for check in checks)
    print(
        f"\n{len(checks) - wrong} of {len(checks)} cells agree within {tolerance.relative:g} relative "
        f"plus {tolerance.resolution:g} of the baseline vector ({tolerance.reason})"
    )
    print("the mask bites" if bites else "the mask moves nothing here: the query does not attend to the token")
    return 1 if wrong else 0
