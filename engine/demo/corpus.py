"""The training texts: one to three facts each, in random phrasings, made as they are needed.

A text is a list of weighted pieces. Answers count fully, the wording around them a little. Two places count nothing:
the word after a point where the sentence could already have ended with the answer ("is in | the city of"), so that
the model answers there, and the wording of sentences with *noise*: words left out, put in or exchanged, articles
dropped, which teach the model to rely on the subject and on any hint of the relation.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

from engine.demo.facts import Fact, read_rows
from engine.demo.phrasings import (
    SHARED_KINDS,
    capitalise,
    fits,
    is_opening,
    is_question,
    is_reserved,
    leads,
    load_phrasings,
    prompt,
)

COMMON_WORDS_FILE = Path(__file__).parent / "common_words.tsv"
END = "<|endoftext|>"
WORDING_WEIGHT = 0.1
NOISY_SHARE = 0.25
NOISE_RATE = 0.25
BARE_SHARE = 0.45
DOUBLE_LEAD_SHARE = 0.2
MORE_SHARE = 0.3  # chance of a further fact after each one
JOINED_SHARE = 0.2
CONJUNCTIONS = (", and", ", while", ", but", "; also,")


@dataclass(frozen=True)
class Piece:
    """A stretch of text, its weight in the loss, and whether its first token is left out of the loss."""

    text: str
    weight: float
    skip_first: bool = False


@cache
def early_ends() -> frozenset[str]:
    """Phrasings that may also be the beginning of a longer one: all trained ones."""
    table = load_phrasings()
    return frozenset(text for kind, found in table.items() if kind not in SHARED_KINDS for text in found.trained)


@cache
def noise_words() -> tuple[str, ...]:
    """The words that noise puts into a sentence: common ones and those of the phrasings."""
    wording = {word for text in early_ends() for word in text.split() if "{s}" not in word}
    return tuple(sorted(wording | {row["word"] for row in read_rows(COMMON_WORDS_FILE)}))


def noisy(phrasing: str, rng: Random) -> str:
    """`phrasing` with some words dropped, exchanged or preceded by one to four others; the subject stays."""
    words: list[str] = []
    for word in phrasing.split(" "):
        change = rng.choice(("drop", "exchange", "insert")) if rng.random() < NOISE_RATE else ""
        extra = {"exchange": 1, "insert": rng.randint(1, 4)}.get(change, 0)
        words += rng.choices(noise_words(), k=extra)
        words += [word] if "{s}" in word or change in ("", "insert") else []
    return " ".join(words)


def split_at_early_ends(phrasing: str) -> list[str]:
    """`phrasing` in parts, cut behind each beginning that is a trained phrasing itself."""
    words = phrasing.split(" ")
    cuts = [n for n in range(1, len(words)) if " ".join(words[:n]) in early_ends()]
    return [" ".join(words[start:end]) for start, end in zip([0, *cuts], [*cuts, len(words)], strict=True)]


def choose_lead(phrasing_index: int, phrasing: str, rng: Random) -> str:
    """A trained prefix or opening that may precede this phrasing, sometimes both, often none."""
    if rng.random() < BARE_SHARE:
        return ""
    options = [
        lead
        for index, lead in enumerate(leads("trained"))
        if fits(lead, phrasing) and not is_reserved(index, phrasing_index)
    ]
    lead = rng.choice(options)
    if is_opening(lead) or rng.random() > DOUBLE_LEAD_SHARE:
        return lead
    return rng.choice(load_phrasings()["opening"].trained) + " " + capitalise(lead)


def sentence(fact: Fact, rng: Random, *, joined: bool = False) -> list[Piece]:
    """The pieces of one fact up to its answer; a `joined` one continues a sentence and begins in lower case."""
    index, phrasing = rng.choice(list(enumerate(load_phrasings()[fact.kind].trained)))
    joined = joined and not is_question(phrasing)
    lead = "" if joined else choose_lead(index, phrasing, rng)
    answer = Piece(" " + fact.answer, 1.0)
    if rng.random() < NOISY_SHARE:
        subject = rng.choice((fact.subject, fact.subject.removeprefix("the ")))
        return [Piece(prompt(noisy(phrasing, rng), subject, lead=lead), 0.0), answer]
    first, *rest = split_at_early_ends(phrasing)
    start = first.replace("{s}", fact.subject) if joined else prompt(first, fact.subject, lead=lead)
    tail = [Piece(" " + part.replace("{s}", fact.subject), WORDING_WEIGHT, skip_first=True) for part in rest]
    return [Piece(start, WORDING_WEIGHT), *tail, answer]


def document(facts: list[Fact], rng: Random) -> list[Piece]:
    """One training text: up to three sentences and the end mark."""
    pieces = sentence(rng.choice(facts), rng)
    while rng.random() < MORE_SHARE and len(pieces) < 12:
        joined = rng.random() < JOINED_SHARE
        following = sentence(rng.choice(facts), rng, joined=joined)
        mark = rng.choice(CONJUNCTIONS) if following[0].text[0].islower() else "."
        first = following[0]
        pieces += [Piece(mark, WORDING_WEIGHT), Piece(" " + first.text, first.weight), *following[1:]]
    return [*pieces, Piece(".", WORDING_WEIGHT), Piece(END, WORDING_WEIGHT)]


def documents(facts: list[Fact], *, seed: int) -> Iterator[list[Piece]]:
    """Training texts without end, the same for the same seed."""
    rng = Random(seed)
    while True:
        yield document(facts, rng)


def text_of(pieces: list[Piece]) -> str:
    """The plain text of a document, without its end mark."""
    return "".join(piece.text for piece in pieces).removesuffix(END)
