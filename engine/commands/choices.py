"""Options that several commands share: which model, where it runs, in which numbers."""

import argparse

from engine.commands.arguments import Parser

EXAMPLE_PROMPT = "The Eiffel Tower is in"
EMBEDDED = "embedded demo model"


def add_model_options(parser: Parser) -> None:
    """``--model``, ``--device``, ``--dtype``."""
    group = parser.add_argument_group("model")
    group.add_argument("--model", metavar="M", help="local folder or hub id (default: the embedded demo model)")
    group.add_argument("--device", metavar="D", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    group.add_argument("--dtype", metavar="T", default="float32", help="float32 (default), float64 or bfloat16")


def add_route_option(parser: Parser) -> None:
    """``--route``, for commands that measure."""
    parser.add_argument(
        "--route",
        metavar="R",
        default="auto",
        help="fused (described families), generic (any model's own layers), or auto (default); see mask-impact models",
    )


def describe_model(arguments: argparse.Namespace) -> str:
    """What produced the numbers, in words; the embedded model always says that it is one."""
    if arguments.model is None:
        return f"{EMBEDDED} (a toy that knows a few hundred facts; choose a real one with --model)"
    return str(arguments.model)
