"""A question in the words of the command line, for people."""

import shlex
from collections.abc import Mapping
from typing import Any

from engine.questions.question import DEFAULTS


def spoken(words: Mapping[str, Any]) -> str:
    """The options that ask the question of these words, as a shell takes them; the empty text for the default."""
    return shlex.join(part for name, word in words.items() for part in _option(name, word))


def differing(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(option, its value there, its value here) where the words of two questions differ."""
    both = [(name, there.get(name, default), here.get(name, default)) for name, default in DEFAULTS.items()]
    return [
        (_name(name), _value(name, old), _value(name, new)) for name, old, new in both if _plain(old) != _plain(new)
    ]


def _option(name: str, word: Any) -> tuple[str, ...]:
    return (_name(name),) if word is True else (_name(name), _value(name, word))


def _name(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _value(name: str, word: Any) -> str:
    if word is None or isinstance(word, bool):
        return "all" if name == "heads" else {None: "not given", True: "given", False: "not given"}[word]
    if name == "heads":
        pairs = sorted(word, key=lambda pair: (pair[0] is not None, pair))
        return ",".join(str(head) if layer is None else f"{layer}:{head}" for layer, head in pairs)
    if name == "mask" and not isinstance(word, str):
        groups = word.values() if isinstance(word, Mapping) else word
        return "positions:" + ",".join("+".join(map(str, group)) for group in groups)
    return word if isinstance(word, str) else ",".join(map(str, word)) or "none"


def _plain(word: Any) -> Any:
    return list(word) if isinstance(word, tuple) else word
