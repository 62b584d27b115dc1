"""The summary of one measured prompt, for a terminal: what was read, what came next, what mattered, where."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from engine.experiment import Impact
from engine.findings.terminal import aligned, quoted

BLOCKS = " ▁▂▃▄▅▆▇█"
PROMPT_EDGE = 20
"""Of a prompt longer than twice this, so many tokens are shown from each end."""
LABEL_WIDTH, GRID_COLUMNS = 10, 12
"""The widest prompt (in chosen tokens) whose layer x token grid still fits a terminal."""


def summarize(impact: Impact, *, top: int = 3) -> str:
    """Tokens with positions, the baseline's next tokens, the Full grid, and the most impactful of everything."""
    parts = [_prompt_line(impact), _next_line(impact), "", *_grid(impact), *_rankings(impact, top)]
    return "\n".join(part for part in parts if part is not None)


def naive_passes(impact: Impact) -> int:
    """How many forwards the naive way takes: for every layer one baseline and one per masked token."""
    return len(impact.layers) * (len(impact.tokens) + 1)


def _prompt_line(impact: Impact) -> str:
    count = len(impact.prompt)
    hidden = range(PROMPT_EDGE, count - PROMPT_EDGE)
    shown = [_token(impact, position) for position in range(count) if position not in hidden]
    if hidden:
        shown.insert(PROMPT_EDGE, f"... {len(hidden)} more ...")
    return "Prompt  " + "  ".join(shown)


def _next_line(impact: Impact) -> str | None:
    if not impact.next_tokens:
        return None
    return "Next    " + "  ".join(f"{quoted(piece)} {probability:.3f}" for piece, probability in impact.next_tokens)


def _grid(impact: Impact) -> list[str]:
    """Cosine distance of the residual update, layer by token, shaded by its share of the largest."""
    if len(impact.tokens) > GRID_COLUMNS:
        return [f"(layer x token grid left out: it holds {GRID_COLUMNS} tokens; choose some with --tokens)", ""]
    cells = impact.distances[:, :, 0, 1]
    labels = [quoted(impact.prompt.pieces[position], columns=LABEL_WIDTH) for position in impact.tokens]
    rows = [
        [str(layer), *(_cell(value, cells) for value in row.tolist())]
        for layer, row in zip(impact.layers, cells, strict=True)
    ]
    title = "How far each layer's update turns when a token is masked (Full, cosine distance)"
    return [title, "", *aligned([["layer", *labels], *rows], gap=" "), ""]


def _cell(value: float, cells: Float[np.ndarray, "l v"]) -> str:
    if np.isnan(value):
        return "-"
    share = value / max(np.nanmax(cells), np.finfo(np.float32).tiny)
    return f"{value:.4f} {BLOCKS[round(max(share, 0.0) * (len(BLOCKS) - 1))]}"


def _rankings(impact: Impact, top: int) -> list[str]:
    """The most impactful tokens and layers (by Full) and heads, by mean distance; each distance ranks on its own."""
    full, heads = impact.distances[:, :, 0], impact.distances[:, :, 2:]
    per_layer = heads.shape[2]
    rows = [
        ["Most impactful", "by mean L2", "", "by mean cosine distance", ""],
        *_ranking("  tokens", lambda i: _token(impact, impact.tokens[i]), _mean(full, axis=0), top),
        *_ranking("  layers", lambda i: f"layer {impact.layers[i]}", _mean(full, axis=1), top),
        *_ranking(
            "  heads",
            lambda i: f"layer {impact.layers[i // per_layer]} {impact.variants[2 + i % per_layer]}",
            _mean(heads, axis=1).reshape(-1, 2),
            top,
        ),
    ]
    return aligned(rows)


def _token(impact: Impact, position: int) -> str:
    return f"{position} {quoted(impact.prompt.pieces[position])}"


def _mean(cells: Float[np.ndarray, "..."], *, axis: int) -> Float[np.ndarray, "..."]:
    """Mean over the defined cells; NaN where there is none."""
    defined = ~np.isnan(cells)
    return np.divide(
        np.where(defined, cells, 0).sum(axis),
        defined.sum(axis),
        out=np.full(cells.sum(axis).shape, np.nan, cells.dtype),
        where=defined.any(axis),
    )


def _ranking(title: str, label: Callable[[int], str], means: Float[np.ndarray, "n 2"], top: int) -> list[list[str]]:
    """Rows of the ``top`` labels with their means, ranked by the first distance and beside it by the second."""
    orders = [np.argsort(-np.nan_to_num(column, nan=-1.0), kind="stable")[:top].tolist() for column in means.T]
    rows = [
        [text for metric, index in enumerate(pair) for text in (label(index), _mean_text(means[index, metric].item()))]
        for pair in zip(*orders, strict=True)
    ]
    return [[title if rank == 0 else "", *row] for rank, row in enumerate(rows)]


def _mean_text(mean: float) -> str:
    return "-" if np.isnan(mean) else f"{mean:.5g}"
