"""One question: three independent choices (cut, hidden from, read) and what refines them.

``Choices`` is how people put it, on the command line and in Python; ``ask`` checks the words and makes a ``Question``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypedDict, cast, get_args

from engine.errors import SelectionError
from engine.questions.heads import HeadChoice, read_heads
from engine.questions.indices import parse_indices
from engine.questions.words import one_of, plain, several_of, split_rule

HiddenFrom = Literal["all", "others", "query"]
Read = Literal["layer", "output"]
Intervention = Literal["mask", "value-zero", "value-mean"]
Query = Literal["last", "all"] | tuple[int, ...]
Masked = str | Sequence[Sequence[int]] | Mapping[str, Sequence[int]]

SITES = ("MLP", "Resid", "Result_h")
COLUMNS = ("attention_mass", "relative_l2", "token_id", "is_special")


class Choices(TypedDict, total=False):
    """The words of a question; what is left out has the value of the mission's table."""

    cut: str
    """``layer`` (each layer on its own), ``window:K`` (K layers around each) or ``all``: where the keys are hidden."""
    hidden_from: str | None
    """``all`` queries, ``others`` (all but the masked token itself) or ``query`` (the one that is read); default: all,
    and others as soon as an effect travels on."""
    read: str
    """``layer`` (what the layer adds and its heads) or ``output`` (the model's answer)."""
    query: str | Sequence[int]
    """``last``, ``all`` or positions: where it is read."""
    intervention: str
    """``mask`` (-inf, and the pattern renormalises), ``value-zero`` or ``value-mean``."""
    heads: str | Sequence[int] | Sequence[tuple[int, int]] | None
    """Heads (``0-3,7``) or layer:head pairs (``4:1,5:0``) in which the keys are hidden; default: all."""
    mask: Masked
    """What is hidden together: ``tokens``, ``words``, ``regex:...``, ``chars:...``, ``positions:...``,
    ``spans:FILE``; or groups of positions, named or not."""
    skip_special: bool
    """Whether special tokens are left out of what is masked."""
    sites: str | Sequence[str]
    """More of ``SITES`` to read in each layer."""
    columns: str | Sequence[str]
    """More of ``COLUMNS`` in the table."""
    answer: str | Sequence[int] | None
    """The text (or token ids) whose probability is read at the output; default: its most probable one."""
    chat: bool
    """Whether prompts are what a user says in a chat, put into the model's template."""
    system: str | None
    """What the system says in that chat."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A checked question. ``window`` is the number of layers that are cut together: 1 for ``layer``, None for all."""

    window: int | None = 1
    hidden_from: HiddenFrom = "all"
    read: Read = "layer"
    query: Query = "last"
    intervention: Intervention = "mask"
    heads: HeadChoice | None = None
    mask: Masked = "tokens"
    skip_special: bool = False
    sites: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    answer: str | tuple[int, ...] | None = None
    chat: bool = False
    system: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether every layer is cut on its own and read at once, so that no effect travels."""
        return self.window == 1 and self.read == "layer"

    def words(self) -> Choices:
        """The choices that make this question again, those that differ from the default; JSON holds them."""
        cut = "all" if self.window is None else "layer" if self.window == 1 else f"window:{self.window}"
        heads = None if self.heads is None else [list(pair) for pair in self.heads.pairs]
        mask = self.mask if isinstance(self.mask, str) else _listed(self.mask)
        own = {"cut": cut, "heads": heads, "mask": mask}
        words = {name: own.get(name, getattr(self, name, None)) for name in Choices.__annotations__}
        kept = () if self.is_local else ("hidden_from",)  # its default depends on the others
        return _plain({name: word for name, word in words.items() if word != DEFAULTS[name] or name in kept})


DEFAULTS: dict[str, Any] = {"cut": "layer", "hidden_from": "all", "mask": "tokens", "heads": None} | {
    each.name: each.default for each in fields(Question) if each.name not in ("window", "heads", "mask", "hidden_from")
}


def _listed(mask: Sequence[Sequence[int]] | Mapping[str, Sequence[int]]) -> Any:
    if isinstance(mask, Mapping):
        return {str(name): list(map(int, group)) for name, group in mask.items()}
    return [list(map(int, group)) for group in mask]


def _plain(words: dict[str, Any]) -> Choices:
    return cast("Choices", {name: list(word) if isinstance(word, tuple) else word for name, word in words.items()})


def ask(choices: Choices) -> Question:
    """Check the words. Raises ``SelectionError`` for one that is not known, and for choices that do not go together."""
    unknown = set(choices) - set(Choices.__annotations__)
    if unknown:
        raise TypeError(f"a question has no {', '.join(sorted(unknown))}; it has {', '.join(Choices.__annotations__)}")
    window = _window(choices.get("cut", "layer"))
    read = one_of(choices.get("read", "layer"), get_args(Read), what="read")
    travels = window != 1 or read == "output"
    mask = choices.get("mask", "tokens")
    if isinstance(mask, str):
        split_rule(mask)
    hidden_from = choices.get("hidden_from") or ("others" if travels else "all")
    question = Question(
        window=window,
        hidden_from=one_of(hidden_from, get_args(HiddenFrom), what="hidden-from"),
        read=read,
        query=_query(plain(choices.get("query", "last"))),
        intervention=one_of(choices.get("intervention", "mask"), get_args(Intervention), what="intervention"),
        heads=read_heads(plain(choices.get("heads"))),
        mask=mask,
        skip_special=choices.get("skip_special", False),
        sites=several_of(choices.get("sites", ()), SITES, what="sites"),
        columns=several_of(choices.get("columns", ()), COLUMNS, what="columns"),
        answer=_answer(plain(choices.get("answer"))),
        chat=choices.get("chat", False),
        system=choices.get("system"),
    )
    _refuse(question)
    return question


def _refuse(question: Question) -> None:
    """Raise ``SelectionError`` for choices that do not go together, with the nearest that do."""
    if question.read == "layer" and question.window not in (1, None):
        raise SelectionError(
            "a window of layers is not read in its layers: choose --read output, or --cut all --read layer"
        )
    if question.read == "output" and question.sites:
        raise SelectionError(f"--sites {','.join(question.sites)} are read in a layer; leave them out of --read output")
    if question.read == "output" and "attention_mass" in question.columns:
        raise SelectionError("attention_mass is a column of --read layer; leave it out of --read output")
    if question.window != 1 and "attention_mass" in question.columns:
        raise SelectionError("attention_mass belongs to each layer's own cut; choose --cut layer, or leave it out")
    if question.read == "layer" and question.answer is not None:
        raise SelectionError("--answer is read at the output; add --read output, or leave it out")
    if question.system is not None and not question.chat:
        raise SelectionError("--system is said in a chat; add --chat, or leave it out")


def _answer(answer: object) -> str | tuple[int, ...] | None:
    if answer is None or isinstance(answer, str):
        return answer
    if isinstance(answer, Sequence) and all(type(each) is int and each >= 0 for each in answer):
        return tuple(answer)
    raise SelectionError(f"an answer is text or token ids, not {answer!r:.60}")


def _window(cut: object) -> int | None:
    if cut in ("layer", "all"):
        return 1 if cut == "layer" else None
    kind, _, size = str(cut).partition(":")
    if kind == "window" and size.isascii() and size.isdigit() and 0 < int(size) < 1_000_000:
        return int(size)
    raise SelectionError(
        f"--cut {str(cut)!r:.60} is not known; choose layer, all, or window:K with K layers, such as 5"
    )


def _query(query: object) -> Query:
    if query == "last" or query == "all":
        return query
    if isinstance(query, str) and query[:1].isdigit():
        return tuple(parse_indices(query, what="--query"))
    if isinstance(query, Sequence) and query and all(type(each) is int and each >= 0 for each in query):
        return tuple(sorted(set(query)))
    raise SelectionError(f"--query {query!r:.60} is not known; choose last, all, or positions such as 3,5")
