"""Lines that every summary has: the prompt, the query, what came next, and a grid of numbers."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from engine.findings.terminal import aligned, plain, quoted, width
from engine.questions.question import Question
from engine.runs.measuring import Found
from engine.summaries.heat import BLOCKS, heat_map
from engine.summaries.ink import Ink
from engine.text.prompts import Prompt

PROMPT_EDGE = 20
"""Of a prompt longer than twice this, so many tokens are shown from each end."""
LABEL_WIDTH, GRID_COLUMNS = 10, 12
"""The widest prompt (in chosen tokens) whose layer x token grid still fits a terminal."""
POSITIONS_WIDTH = 12


def opening(found: Found) -> list[str]:
    """The prompt, the query where it is not simply the last token, and the most probable next tokens."""
    queries = found.labels.get("query_position")
    lines = [_prompt_line(found.prompt)]
    if queries:
        several = len(set(queries))
        more = f"; the last of {several} that were asked, which are all in the table" if several > 1 else ""
        lines.append(f"Query   {token(found.prompt, shown_query(found))} (what follows is read here{more})")
    if found.next_tokens:
        likely = (f"{quoted(piece)} {probability:.3f}" for piece, probability in found.next_tokens)
        lines.append("Next    " + "  ".join(likely))
    return lines


def shown_query(found: Found) -> int:
    """The position of the query that a summary shows: the last one."""
    return max(found.labels.get("query_position", (len(found.prompt) - 1,)))  # type: ignore[type-var, return-value]


def shown_cases(found: Found) -> list[int]:
    """The places of the cases that are read at that query."""
    queries = found.labels.get("query_position")
    return [c for c in range(len(found.tokens)) if queries is None or queries[c] == shown_query(found)]


def case_texts(found: Found) -> tuple[str, ...]:
    """The text of what each case hides."""
    return found.names or tuple(found.prompt.pieces[first] for first in found.tokens)


def case(found: Found, place: int) -> str:
    """What a case hides: positions and text."""
    positions = str(found.labels.get("masked_positions", found.tokens)[place])
    return f"{plain(positions, columns=POSITIONS_WIDTH)} {quoted(case_texts(found)[place])}"


def token(prompt: Prompt, position: int) -> str:
    """A token's position and text."""
    return f"{position} {quoted(prompt.pieces[position])}"


def grid(
    found: Found,
    cells: Float[np.ndarray, "l v"],
    *,
    title: str,
    show: Callable[[float], str],
    ink: Ink,
) -> list[str]:
    """One number per layer and shown case, shaded by its share of the largest.

    Where that is too wide a terminal gets a heat map without numbers, and a file or pipe one line.
    """
    places = shown_cases(found)
    layers = ["all" if layer is None else str(layer) for layer in found.layers]
    if len(places) <= GRID_COLUMNS:
        lines = _numbers(found, cells, layers, show=show, ink=ink)
        if ink.columns is None or max(map(width, lines)) < ink.columns:
            return [title, "", *lines, ""]
    if ink.columns is not None:
        positions = [found.tokens[place] for place in places]
        return [*heat_map(cells, layers=layers, positions=positions, ink=ink, title=title), ""]
    single = "masked_positions" not in found.labels
    more = "; choose some with --tokens" if single else ""
    return [f"(layer x token grid left out: it holds {GRID_COLUMNS} {'tokens' if single else 'groups'}{more})", ""]


def _numbers(
    found: Found, cells: Float[np.ndarray, "l v"], layers: Sequence[str], *, show: Callable[[float], str], ink: Ink
) -> list[str]:
    """The grid of numbers under the texts of what is hidden."""
    texts = case_texts(found)
    labels = [quoted(texts[place], columns=LABEL_WIDTH) for place in shown_cases(found)]
    largest = float(max(np.nanmax(np.abs(cells), initial=0.0), np.finfo(np.float32).tiny))
    rows = [
        [layer, *(_cell(value, largest, show, ink) for value in row.tolist())]
        for layer, row in zip(layers, cells, strict=True)
    ]
    return aligned([["layer", *labels], *rows], gap=" ")


def hiding(question: Question) -> str:
    """What is done to what, in which layers, for a title."""
    what = "a token" if question.mask == "tokens" else "a group"
    how = {"mask": "is masked", "value-zero": "has its values zeroed", "value-mean": "has its values averaged"}
    where = "in all layers" if question.window is None else f"in the {question.window} layers around each"
    parts = [what, how[question.intervention]]
    parts += ["for the query alone"] * (question.hidden_from == "query" and not question.is_local)
    parts += ["in some heads"] * (question.heads is not None)
    parts += [where] * (question.window != 1)
    return " ".join(parts)


def best_first(scores: Sequence[float] | Float[np.ndarray, " n"], top: int) -> list[int]:
    """The places of the ``top`` largest scores, undefined ones last."""
    return np.argsort(-np.nan_to_num(scores, nan=-1.0), kind="stable")[:top].tolist()


def _prompt_line(prompt: Prompt) -> str:
    count = len(prompt)
    hidden = range(PROMPT_EDGE, count - PROMPT_EDGE)
    shown = [token(prompt, position) for position in range(count) if position not in hidden]
    if hidden:
        shown.insert(PROMPT_EDGE, f"... {len(hidden)} more ...")
    return "Prompt  " + "  ".join(shown)


def _cell(value: float, largest: float, show: Callable[[float], str], ink: Ink) -> str:
    if np.isnan(value):
        return "-"
    share = abs(value) / largest
    return ink.filled(f" {show(value)} ", share) if ink.depth else f"{show(value)} {BLOCKS[round(share * 8)]}"
