"""How a fact can be asked for: patterns per kind, prefixes and openings, read from `phrasings.tsv`.

A pattern is one line in which `(a|b|)` stands for a choice and `{s}` for the subject; it ends right before the
answer. A *prefix* opens the sentence ("as I remember,"), an *opening* is a sentence of its own ("Hello!").
`held_out` patterns are never trained. Besides, every trained phrasing has prefixes that it never follows in training.
"""

import re
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

from engine.demo.facts import read_rows

PHRASINGS_FILE = Path(__file__).parent / "phrasings.tsv"
SHARED_KINDS = ("prefix", "opening")
RESERVED_EVERY = 8  # one in so many pairs of prefix and phrasing is kept out of training


@dataclass(frozen=True)
class Phrasings:
    """The expanded patterns of one kind; the two tuples share no entry."""

    trained: tuple[str, ...]
    held_out: tuple[str, ...]


def expand(pattern: str) -> list[str]:
    """All texts of a pattern: `a (b|c|) d` gives `a b d`, `a c d`, `a  d` with single spaces."""
    parts = re.split(r"\(([^()]*)\)", pattern)
    choices = [part.split("|") if index % 2 else [part] for index, part in enumerate(parts)]
    return list(dict.fromkeys(re.sub(" +", " ", "".join(combo)).strip() for combo in product(*choices)))


@cache
def load_phrasings() -> dict[str, Phrasings]:
    """Kind -> its phrasings; `prefix` and `opening` are kinds shared by all facts."""
    texts: dict[str, dict[str, list[str]]] = {}
    for row in read_rows(PHRASINGS_FILE):
        uses = texts.setdefault(row["kind"], {"trained": [], "held_out": []})
        uses[row["use"]] += expand(row["pattern"])
    return {
        kind: Phrasings(**{use: tuple(dict.fromkeys(found)) for use, found in uses.items()})
        for kind, uses in texts.items()
    }


def is_question(phrasing: str) -> bool:
    """Whether the phrasing is a sentence of its own, so that no prefix fits in front."""
    return phrasing[0].isupper()


def is_opening(lead: str) -> bool:
    """Whether `lead` is a sentence of its own rather than a prefix."""
    return lead[-1] in ".!:"


def fits(lead: str, phrasing: str) -> bool:
    """Whether `lead` can stand in front: an opening always, a prefix only before a statement."""
    return is_opening(lead) or not is_question(phrasing)


def is_reserved(lead_index: int, phrasing_index: int) -> bool:
    """Whether this pair of lead and phrasing is kept out of training."""
    return (lead_index + phrasing_index) % RESERVED_EVERY == 0


def leads(use: str) -> tuple[str, ...]:
    """Prefixes and openings together, `use` being `trained` or `held_out`."""
    return tuple(lead for kind in SHARED_KINDS for lead in getattr(load_phrasings()[kind], use))


def capitalise(text: str) -> str:
    """`text` with its first letter in upper case and the rest as it is."""
    return text[:1].upper() + text[1:]


def prompt(phrasing: str, subject: str, *, lead: str = "") -> str:
    """The text a model is asked to continue with the answer."""
    sentence = phrasing.replace("{s}", subject)
    if not lead:
        return capitalise(sentence)
    return capitalise(lead) + " " + (capitalise(sentence) if is_opening(lead) else sentence)
