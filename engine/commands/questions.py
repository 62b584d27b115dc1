"""The options that ask another question than the mission's: what is cut, from whom, and where it is read."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine.commands.arguments import Parser
from engine.commands.panics import panics_unsaid

if TYPE_CHECKING:
    from engine.questions.question import Choices, Question

OPTIONS = {
    "cut": ("WHERE", "hide tokens in each layer on its own (layer), in the K around it (window:K), or in all"),
    "hidden_from": ("WHOM", "from all queries, others (not from themselves) or query; the default is others as soon as "
                    "an effect travels through layers"),
    "read": ("WHAT", "layer (what it adds, and its heads) or output (the model's answer)"),
    "query": ("WHICH", "where it is read: last, all, or positions such as 3,5"),
    "intervention": ("HOW", "mask (-inf), value-zero or value-mean"),
    "heads": ("LIST", "cut these heads only, such as 0-3,7, or 4:1,5:0 as layer:head"),
    "mask": ("RULE", "hide together: tokens, words, regex:.., chars:4-10, positions:1+2,5 or spans:FILE"),
    "sites": ("LIST", "read more in each layer: MLP, Resid, Result_h"),
    "columns": ("LIST", "more columns: attention_mass, relative_l2, token_id, is_special"),
    "answer": ("TEXT", "the answer that is scored (default: the most probable token)"),
    "system": ("TEXT", "what the system says in the chat"),
}  # fmt: skip
SWITCHES = {
    "skip_special": "never hide special tokens",
    "chat": "the prompt is what a user says, in the model's chat template",
}
"""The words of a question by their options; see ``engine.questions.question.Choices``."""


def add_options(parser: Parser) -> None:
    """The options of a question; they are None where they were not given."""
    group = parser.add_argument_group("other questions", "The first choice is the default; the README says more.")
    for name, (metavar, text) in OPTIONS.items():
        group.add_argument(f"--{name.replace('_', '-')}", metavar=metavar, help=text)
    for name, text in SWITCHES.items():
        group.add_argument(f"--{name.replace('_', '-')}", action="store_true", default=None, help=text)


def choices_of(arguments: argparse.Namespace) -> "Choices":
    """What was given, and nothing else."""
    given = {name: getattr(arguments, name) for name in (*OPTIONS, *SWITCHES)}
    return {name: word for name, word in given.items() if word is not None}  # type: ignore[return-value]


def asked(arguments: argparse.Namespace) -> "Question":
    """The question, its words checked before anything heavy is imported. Raises ``SelectionError``."""
    from engine.questions.question import ask

    return ask(choices_of(arguments))


def require_rule(question: "Question", tokens: Sequence[int] | None) -> None:
    """Raise, before a model is loaded, what its ``--mask`` would meet: ``SelectionError`` and ``InputError``."""
    from engine.text.rules import read_rule

    with panics_unsaid():
        read_rule(question.mask, tokens=tokens, skip_special=question.skip_special)
