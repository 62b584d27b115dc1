"""What the naive way to a table costs: a forward pass for everything that is hidden."""

from dataclasses import dataclass

from engine.questions.question import Question
from engine.runs.measuring import Found
from engine.text.plans import windows_of


@dataclass(frozen=True)
class Naive:
    """So many forward passes, and why."""

    count: int
    reason: str


def naive_passes(found: Found, question: Question, *, num_layers: int) -> Naive:
    """How many forwards the naive way takes.

    Where every layer is cut on its own: for every layer one baseline, and one for each group of tokens. Where effects
    travel: one baseline, and one for each group and window of layers. One forward shows all queries, unless the group
    is hidden from a single one of them.
    """
    groups, what = _num_groups(found), "masked tokens" if question.mask == "tokens" else "groups"
    if question.is_local:
        layers = len(found.layers)
        return Naive(layers * (groups + 1), f"layers x ({what} + 1): {layers:,} x ({groups:,} + 1)")
    each = question.hidden_from == "query" and question.query != "last"
    runs = len(found.tokens) if each else groups
    what = f"pairs of {what} and queries" if each else what
    chosen = [layer for layer in found.layers if layer is not None]
    windows = len(set(windows_of(question.window, chosen, num_layers)))
    if windows == 1:
        return Naive(runs + 1, f"{what} + 1: {runs:,} + 1")
    return Naive(windows * runs + 1, f"windows of layers x {what} + 1: {windows:,} x {runs:,} + 1")


def _num_groups(found: Found) -> int:
    """How many different things are hidden."""
    return len(set(zip(found.labels.get("masked_positions", found.tokens), found.tokens, strict=True)))
