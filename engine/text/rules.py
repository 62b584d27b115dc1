"""How people put what is hidden together: from words, or groups of positions, to a rule."""

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from engine.errors import SelectionError
from engine.questions.indices import parse_indices
from engine.questions.question import Masked
from engine.questions.words import RULES, split_rule
from engine.text.groups import Matches, Rule, Spans, Tokens, Words
from engine.text.spans import Span, index_list, parse_group, read_spans


def read_rule(mask: Masked, *, tokens: Sequence[int] | None = None, skip_special: bool = False) -> Rule:
    """The rule that ``mask`` puts into words, or that has groups of positions as they are given, named or not.

    ``tokens`` limits the rule ``tokens`` to these positions; ``skip_special`` leaves special tokens out of the rules
    ``tokens`` and ``words``. A file of spans is read here, once. Raises ``SelectionError`` for what is no rule or does
    not go together, and ``InputError`` for a file of spans that cannot be read.
    """
    kind = mask if isinstance(mask, str) else "groups"
    if tokens is not None and kind != "tokens":
        raise SelectionError("--tokens chooses among single tokens; leave it out, or choose --mask tokens")
    if skip_special and kind not in ("tokens", "words"):
        raise SelectionError("--skip-special goes with --mask tokens or words; leave it out, or choose one of them")
    if kind in ("tokens", "words"):
        return Tokens(tokens, skip_special) if kind == "tokens" else Words(skip_special)
    if not isinstance(mask, str):
        return Spans("the mask", _given(mask))
    kind, rest = split_rule(mask)
    return _READERS[kind](rest)


def file_of(mask: object) -> Path | None:
    """The file of spans that a mask names; None for any other."""
    kind, rest = mask.partition(":")[::2] if isinstance(mask, str) else ("", "")
    return Path(rest) if kind == "spans" else None


def _given(mask: object) -> tuple[Span, ...]:
    """Groups of positions as Python gives them."""
    if isinstance(mask, Mapping):
        named: list[tuple[str | None, object]] = [(str(name), group) for name, group in mask.items()]
    elif isinstance(mask, Sequence) and not isinstance(mask, bytes):
        named = [(None, group) for group in mask]
    else:
        raise SelectionError(f"mask {mask!r:.60} is no list of groups; give one such as [[1, 2], [5]], or {RULES}")
    if not named:
        raise SelectionError("mask has no groups of positions; give at least one, such as [[1, 2]]")
    return tuple(Span(None, name, index_list(group, what="mask"), None) for name, group in named)


def _pattern(text: str) -> Matches:
    try:
        with warnings.catch_warnings(action="ignore"):
            return Matches(re.compile(text))
    except (re.error, OverflowError, RecursionError) as error:
        raise SelectionError(
            f"--mask regex: {text!r:.60} is no pattern: {error}; Python's re says what one is"
        ) from error


def _ranges(text: str) -> Spans:
    ranges = [parse_indices(part, what="--mask chars") for part in text.split(",")]
    return Spans("--mask chars", tuple(Span(None, None, (), (each[0], each[-1] + 1)) for each in ranges))


def _positions(text: str) -> Spans:
    groups = [parse_group(part, what="--mask positions") for part in text.split(",")]
    return Spans("--mask positions", tuple(Span(None, None, group, None) for group in groups))


_READERS: dict[str, Callable[[str], Rule]] = {
    "regex": _pattern,
    "chars": _ranges,
    "positions": _positions,
    "spans": lambda path: Spans(repr(path), read_spans(path)),
}
