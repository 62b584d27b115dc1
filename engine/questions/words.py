"""Words that are chosen from a list."""

from collections.abc import Sequence
from typing import Any

from engine.errors import SelectionError

RULES = "tokens, words, regex:PATTERN, chars:4-10,15, positions:1+2+3,5 or spans:FILE"


def plain(value: Any) -> Any:
    """Arrays and their numbers as Python's own; anything else as it is."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


def one_of(word: object, known: Sequence[str], *, what: str) -> Any:
    """The word, which must be among the known ones. Raises ``SelectionError``."""
    if not isinstance(word, str) or word not in known:
        raise SelectionError(f"--{what} {str(word)!r:.60} is not known; choose {', '.join(known[:-1])} or {known[-1]}")
    return word


def several_of(words: object, known: Sequence[str], *, what: str) -> tuple[str, ...]:
    """The words of a list, or of a text with commas, whatever their case, in the order of ``known``."""
    given = words.split(",") if isinstance(words, str) else words
    if not isinstance(given, Sequence) or not all(isinstance(word, str) for word in given):
        raise SelectionError(f"--{what} {words!r:.60} is no list of names; choose from {', '.join(known)}")
    by_lower = {word.lower(): word for word in known}
    chosen = {by_lower.get(word.strip().lower()) or one_of(word.strip(), known, what=what) for word in given}
    return tuple(word for word in known if word in chosen)


def split_rule(mask: str) -> tuple[str, str]:
    """The kind of a rule, and what follows its colon. Raises ``SelectionError`` for a rule that is not known."""
    kind, colon, rest = mask.partition(":")
    known = ("regex", "chars", "positions", "spans") if colon else ("tokens", "words")
    if kind not in known or (colon and not rest):
        raise SelectionError(f"--mask {mask!r:.60} is not known; choose {RULES}")
    return kind, rest
