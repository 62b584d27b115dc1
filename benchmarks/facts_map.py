"""Where the embedded model reads its facts: attention knockout, averaged by what a token is in its sentence.

    python -m benchmarks.facts_map [--facts N] [--window K]

For N facts that the model knows, one sentence each ("The Eiffel Tower is in"), every token is hidden from the last one,
a window of K layers at a time (Geva et al. 2023, arXiv 2304.14767). The figure is the change of the answer's
log-probability, in nats: the mean over the tokens of a role in a sentence, then over the sentences.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl

ROLES = {"subject": "subject tokens", "relation": "relation tokens", "last": "last token"}
SENTENCES = {
    "landmark": "{s} is in",
    "capital": "the capital of {s} is",
    "currency": "the currency of {s} is the",
    "language": "the language of {s} is",
    "author": "{s} was written by",
    "painter": "{s} was painted by",
}
"""Kind of fact -> the trained phrasing that is used here."""
FACTS = 12


@dataclass(frozen=True)
class Sentence:
    """A prompt, where its subject stands in it, and the text that has to follow."""

    text: str
    subject: range
    answer: str


def sentences(count: int) -> list[Sentence]:
    """The first facts of every kind in turn, ``count`` in all."""
    from engine.demo.facts import load_facts
    from engine.demo.phrasings import prompt

    by_kind = {kind: [fact for fact in load_facts() if fact.kind == kind] for kind in SENTENCES}
    in_turn = [facts[turn] for turn in range(count) for facts in by_kind.values() if turn < len(facts)]
    found = []
    for fact in in_turn[:count]:
        text = prompt(SENTENCES[fact.kind], fact.subject)
        start = text.lower().index(fact.subject.lower())
        found.append(Sentence(text, range(start, start + len(fact.subject)), f" {fact.answer}"))
    return found


def roles(sentence: Sentence, tokenizer: Any) -> list[str]:
    """The role of every token: a token with a character of the subject belongs to it."""
    spans = tokenizer(sentence.text, return_offsets_mapping=True)["offset_mapping"]
    named = ["subject" if set(range(*span)) & set(sentence.subject) else "relation" for span in spans]
    return [*named[:-1], "last"]


def changes(masker: Any, asked: Iterable[Sentence], *, window: int) -> "pl.DataFrame":
    """The mean change of the answer's log-probability, for every layer and role."""
    import polars as pl

    words = {"cut": f"window:{window}", "hidden_from": "query", "read": "output"}
    tables = []
    for number, sentence in enumerate(asked):
        table = masker.run(sentence.text, answer=sentence.answer, **words)
        of_token = pl.Series(roles(sentence, masker.tokenizer))
        found = table.select("layer", "answer_logprob_change", role=of_token[table["token_position"].to_list()])
        tables.append(found.group_by("layer", "role").agg(pl.col("answer_logprob_change").mean(), sentence=number))
    return pl.concat(tables).group_by("layer", "role").agg(pl.col("answer_logprob_change").mean()).sort("layer")


def as_text(means: "pl.DataFrame") -> str:
    """One line a layer, one column a role."""
    cells = {(layer, role): change for layer, role, change in means.iter_rows()}
    layers = sorted({layer for layer, _ in cells})
    titles = [title for role, title in ROLES.items() if (layers[0], role) in cells]
    lines = ["layer  " + "  ".join(titles)]
    for layer in layers:
        values = [f"{cells[layer, role]:+.2f}".rjust(len(ROLES[role])) for role in ROLES if (layer, role) in cells]
        lines.append(f"{layer:>5}  " + "  ".join(values))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the map."""
    parsed = _parser().parse_args(arguments)
    from engine import AttentionMasker

    masker = AttentionMasker.from_pretrained(device="cpu")
    asked = sentences(parsed.facts)
    print(f"{len(asked)} facts, --cut window:{parsed.window} --hidden-from query --read output;")
    print("change of the answer's log-probability in nats, averaged by role\n")
    print(as_text(changes(masker, asked, window=parsed.window)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.facts_map", description="Where the embedded model reads its facts."
    )
    parser.add_argument("--facts", type=int, default=FACTS, help="how many (default: %(default)s)")
    parser.add_argument("--window", type=int, default=1, help="layers that are cut together (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
