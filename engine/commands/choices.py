"""Options that several commands share: which model, where it runs, in which numbers."""

import argparse
from typing import TYPE_CHECKING

from engine.commands.arguments import Parser

if TYPE_CHECKING:
    from engine.experiment import AttentionMasker

EXAMPLE_PROMPT = "The Eiffel Tower is in"
EMBEDDED = "embedded demo model"


def add_model_options(parser: Parser) -> None:
    """``--model``, ``--device``, ``--dtype``."""
    group = parser.add_argument_group("model")
    group.add_argument("--model", metavar="M", help="local folder or hub id (default: the embedded demo model)")
    group.add_argument("--device", metavar="D", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    group.add_argument("--dtype", metavar="T", default="float32", help="float32 (default), float64 or bfloat16")


def add_placement_options(parser: Parser) -> None:
    """``--stream`` and ``--device-map``, for commands that need the engine's view on the model alone."""
    group = parser.add_argument_group("models larger than memory").add_mutually_exclusive_group()
    group.add_argument(
        "--stream", action="store_true", help="read the weights layer by layer: memory holds two layers at a time"
    )
    group.add_argument("--device-map", metavar="MAP", help="auto: lay the layers out over all devices (accelerate)")


def add_route_option(parser: Parser) -> None:
    """``--route``, for commands that measure."""
    parser.add_argument(
        "--route",
        metavar="R",
        default="auto",
        help="fused (described families), generic (any model's own layers), or auto (default); see mask-impact models",
    )


def add_check_option(parser: Parser) -> None:
    """``--no-check``, for commands that measure."""
    parser.add_argument(
        "--no-check",
        action="store_true",
        help="skip the self-check, which holds the engine against transformers on this machine when a model is loaded",
    )


def describe_model(arguments: argparse.Namespace) -> str:
    """What produced the numbers, in words; the embedded model always says that it is one."""
    if arguments.model is None:
        return f"{EMBEDDED} (a toy that knows a few hundred facts; choose a real one with --model)"
    return str(arguments.model)


def loaded_masker(arguments: argparse.Namespace) -> "AttentionMasker":
    """The model of a command that has all of these options. Raises ``ModelError`` and ``DeviceError``."""
    from engine.experiment import AttentionMasker

    place = {name: getattr(arguments, name) for name in ("device", "dtype", "route", "stream", "device_map")}
    return AttentionMasker.from_pretrained(arguments.model, **place, check=not arguments.no_check)
