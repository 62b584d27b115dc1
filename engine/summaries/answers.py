"""The summary of an effect: what became of the answer, by layer and token, and where it changed most."""

import numpy as np
from jaxtyping import Float

from engine.findings.terminal import aligned, number, quoted
from engine.questions.question import Question
from engine.runs.effect import Effect
from engine.summaries.ink import Ink
from engine.summaries.lines import best_first, case, grid, hiding, shown_cases

STRONGEST = 8
"""Effects that are listed."""


def effect_lines(effect: Effect, question: Question, *, ink: Ink) -> list[str]:
    """The answer with its probability, the grid of changes and the strongest effects, at the query that is shown."""
    shown = shown_cases(effect)
    cells = effect.numbers["answer_logprob_change"][:, shown]
    before = float(effect.numbers["answer_logprob"][0, shown[0]])
    title = f"How the log-probability of the answer changes when {hiding(question)} (nats)"
    return [
        f"Answer  {quoted(effect.answers[shown[0]])} {np.exp(before):.3f} (log-probability {number(before)})",
        "",
        *grid(effect, cells, title=title, show=lambda value: f"{value:+.3f}".rjust(7), ink=ink),
        *_strongest(effect, cells, shown, _top_token(effect, question, shown)),
    ]


def _top_token(effect: Effect, question: Question, shown: list[int]) -> str | None:
    """The most probable token of the unmasked run; None where nothing tells."""
    if effect.next_tokens:
        return effect.next_tokens[0][0]
    return effect.answers[shown[0]] if question.answer is None else None


def _strongest(effect: Effect, cells: Float[np.ndarray, "l v"], shown: list[int], top_token: str | None) -> list[str]:
    """The largest changes, whatever their sign, with the top token where it is another."""
    rows = [["Strongest effects", "layer", "hidden", "change", "KL", "top token, if another"]]
    for index in best_first(np.abs(cells).ravel(), STRONGEST):
        layer, place = divmod(index, len(shown))
        top = effect.top_tokens[layer][shown[place]]
        rows.append(
            [
                "",
                str("all" if effect.layers[layer] is None else effect.layers[layer]),
                case(effect, shown[place]),
                _signed(cells[layer, place].item()),
                number(_defined(effect.numbers["kl_divergence"][layer, shown[place]].item())),
                "" if top in (None, top_token) else quoted(str(top)),
            ]
        )
    return aligned(rows)


def _signed(change: float) -> str:
    return "-" if np.isnan(change) else f"{change:+.4f}"


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else value
