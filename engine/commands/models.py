"""``mask-impact models``: which architectures are supported, and by which route."""

import argparse
import textwrap
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from engine.commands.arguments import Parser

if TYPE_CHECKING:
    from engine.model.catalogue import Architecture

WIDTH = 110
FUSED = "Fused: the engine computes the layers itself; every weight is read once, and differences are carried"
GENERIC = (
    "Generic: the model's own layers are run again on masked copies, and their outputs subtracted; slower. A model "
    "proves in a short forward that it can be followed, or it is refused with the reason"
)
REFUSED = "Not supported"


def build_parser() -> Parser:
    """The arguments of ``models``."""
    parser = Parser(
        prog="mask-impact models",
        description="List the architectures (model_type in a config.json) of the installed transformers: those that "
        "are supported, by which route, and those that are not, with the reason.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    return parser


def execute(arguments: argparse.Namespace) -> int:
    """Print the list and return 0."""
    from engine.files import write_stdout
    from engine.model.catalogue import models

    found = models()
    write_stdout(_as_json(found) if arguments.json else "\n".join(_as_text(found)) + "\n")
    return 0


def _as_json(found: Iterable["Architecture"]) -> str:
    import json
    from dataclasses import asdict

    return json.dumps([asdict(each) for each in found], ensure_ascii=False, indent=1) + "\n"


def _as_text(found: Iterable["Architecture"]) -> Iterator[str]:
    """A line for each fused family, the names of all generic ones, and for each reason those that it concerns."""
    by_route: dict[str | None, list[Architecture]] = {"fused": [], "generic": [], None: []}
    for each in found:
        by_route[each.route].append(each)
    yield FUSED
    for each in by_route["fused"]:
        yield f"  {each.model_type:<12} {each.architecture:<22} {each.note}"
    yield from ("", *_wrapped(GENERIC, indent=""))
    yield from _wrapped(", ".join(each.model_type for each in by_route["generic"]))
    yield from ("", REFUSED)
    for reason in dict.fromkeys(each.note for each in by_route[None]):
        names = (each.model_type for each in by_route[None] if each.note == reason)
        yield from _wrapped(f"{reason}: {', '.join(names)}")


def _wrapped(text: str, indent: str = "  ") -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
