"""Which architectures are supported, and by which route: the families of the engine, and what transformers holds.

What transformers holds is found in the text of its modelling files, none of which is imported.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from engine.model import families
from engine.model.families import FAMILIES

INTERFACE = "ALL_ATTENTION_FUNCTIONS"
CLASS = re.compile(r"^class (\w+)\(", re.MULTILINE)
WITHOUT_ATTENTION = re.compile(
    r"^class \w*(?:Mamba|BambaMixer|Delta|ShortConv|Recurrent|LinearAttention|Lightning)\w*\(",
    re.MULTILINE,
)
CHOSEN = re.compile(r"indices=(?:sparse|block)_indices")
NO_INTERFACE = "its attention does not go through transformers' interface"
HYBRID = "layers without attention (state spaces, convolutions, linear attention), unless a checkpoint has none of them"
CHOOSES = "every query chooses its keys by an index of its own"
NOT_FOLLOWED = {
    "beam": "the stream itself is scaled before anything is added to it",
    "blt": "three models, of bytes and of patches, in one",
    "deepseek_v4": "several residual streams side by side",
    "diffllama": "two attentions in every layer",
    "doge": "the stream itself is scaled before anything is added to it",
    "falcon_h1": "a state space beside every attention",
    "gemma3n": "several residual streams side by side",
    "gemma3n_text": "several residual streams side by side",
    "inkling_text": "a convolution over positions behind every attention",
    "inkling2_text": "a convolution over positions behind every attention",
    "longcat_flash": "two attentions in every layer",
}
"""What a short forward of a tiny model has shown, where the text of the modelling file does not say it."""


@dataclass(frozen=True)
class Architecture:
    """A ``model_type``, the causal class that transformers has for it, and its route; None is not supported."""

    model_type: str
    architecture: str
    route: Literal["fused", "generic"] | None
    note: str = ""
    """What is special about a fused family; why another is not supported."""


def models() -> tuple[Architecture, ...]:
    """Every causal architecture of the transformers that is installed: fused ones first, then generic ones, then those
    that are not supported. The generic route proves at loading that it can follow a model; see ``probing``.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

    fused = [Architecture(f.model_type, f.architecture, "fused", _note(f.model_type)) for f in FAMILIES.values()]
    others = [_described(name, kind) for name, kind in sorted(CLASSES.items()) if name not in FAMILIES]
    generic = [each for each in others if each.route is not None]
    return (*fused, *generic, *(each for each in others if each.route is None))


def refusal(model_type: object) -> str | None:
    """Why no model of this ``model_type`` can be supported; None if its forward has to tell."""
    found = next((each for each in models() if each.model_type == model_type), None)
    if found is None:
        return "this transformers has no causal language model of that type"
    return NO_INTERFACE if found.note == NO_INTERFACE else None


def _described(model_type: str, architecture: str) -> Architecture:
    text = _text(architecture)
    reason = NOT_FOLLOWED.get(model_type)
    if INTERFACE not in text:
        reason = NO_INTERFACE
    elif WITHOUT_ATTENTION.search(text) and reason is None:
        reason = HYBRID
    elif CHOSEN.search(text):
        reason = CHOOSES
    return Architecture(model_type, architecture, None if reason else "generic", reason or "")


def _text(architecture: str) -> str:
    """The modelling file that holds a class; nothing where there is none."""
    path = _homes().get(architecture)
    return "" if path is None else path.read_text(encoding="utf-8")


@cache
def _homes() -> dict[str, Path]:
    """The file of every class in transformers' modelling files."""
    return {name: path for path in _modelling_files() for name in CLASS.findall(path.read_text(encoding="utf-8"))}


def _modelling_files() -> Iterator[Path]:
    spec = find_spec("transformers")
    for place in (spec and spec.submodule_search_locations) or ():
        yield from sorted(Path(place).glob("models/*/modeling_*.py"))


def _note(model_type: str) -> str:
    """How the family's own file begins, without its name."""
    texts = (path.read_text(encoding="utf-8") for path in Path(families.__path__[0]).glob("*.py"))
    text = next((text for text in texts if f'model_type="{model_type}"' in text), '""""""')
    first = text.split('"""')[1].split("\n\n")[0]
    return " ".join(first.partition(":")[2].split()).rstrip(".")
