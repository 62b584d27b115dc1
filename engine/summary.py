"""The summary of one measured prompt, for a terminal: what was read, what came next, what mattered, where."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from engine.experiment import Impact

BLOCKS = " ▁▂▃▄▅▆▇█"
GRID_COLUMNS = 12
"""The widest prompt (in chosen tokens) whose layer x token grid still fits a terminal."""


def summarize(impact: Impact, *, top: int = 3) -> str:
    """Tokens with positions, the baseline's next tokens, the Full grid, and the most impactful of everything."""
    parts = [_prompt_line(impact), _next_line(impact), "", *_grid(impact), *_rankings(impact, top)]
    return "\n".join(part for part in parts if part is not None)


def naive_passes(impact: Impact) -> int:
    """How many forwards the naive way takes: for every layer one baseline and one per masked token."""
    return len(impact.layers) * (len(impact.tokens) + 1)


def _prompt_line(impact: Impact) -> str:
    pieces = [f"{position} {piece!r}" for position, piece in enumerate(impact.prompt.pieces)]
    shown = pieces if len(pieces) <= 40 else [*pieces[:20], f"... {len(pieces) - 40} more ...", *pieces[-20:]]
    return "Prompt  " + "  ".join(shown)


def _next_line(impact: Impact) -> str | None:
    if not impact.next_tokens:
        return None
    return "Next    " + "  ".join(f"{piece!r} {probability:.3f}" for piece, probability in impact.next_tokens)


def _grid(impact: Impact) -> list[str]:
    """Cosine distance of the residual update, layer by token, shaded by its share of the largest."""
    if len(impact.tokens) > GRID_COLUMNS:
        return []
    cells = impact.distances[:, :, 0, 1]
    labels = [repr(impact.prompt.pieces[position])[:10] for position in impact.tokens]
    width = max(8, *map(len, labels))
    lines = ["How far each layer's update turns when a token is masked (Full, cosine distance)", ""]
    lines.append("layer " + " ".join(f"{label:>{width}}" for label in labels))
    for layer, row in zip(impact.layers, cells, strict=True):
        lines.append(f"{layer:>5} " + " ".join(f"{_cell(value, cells):>{width}}" for value in row.tolist()))
    return [*lines, ""]


def _cell(value: float, cells: Float[np.ndarray, "l v"]) -> str:
    if np.isnan(value):
        return "-"
    share = value / max(np.nanmax(cells), np.finfo(np.float32).tiny)
    return f"{value:.4f} {BLOCKS[round(max(share, 0.0) * (len(BLOCKS) - 1))]}"


def _rankings(impact: Impact, top: int) -> list[str]:
    """The most impactful tokens and layers (by Full) and heads, by mean distance; each distance ranks on its own."""
    lines = [f"Most impactful  {'by mean L2':<42} by mean cosine distance"]
    full, heads = impact.distances[:, :, 0], impact.distances[:, :, 2:]
    tokens = [f"{position} {impact.prompt.pieces[position]!r}"[:24] for position in impact.tokens]
    layers = [f"layer {layer}" for layer in impact.layers]
    names = [f"layer {layer} {head}" for layer in impact.layers for head in impact.variants[2:]]
    lines += _ranking("tokens", tokens, _mean(full, axis=0), top)
    lines += _ranking("layers", layers, _mean(full, axis=1), top)
    lines += _ranking("heads", names, _mean(heads, axis=1).reshape(-1, 2), top)
    return lines


def _mean(cells: Float[np.ndarray, "..."], *, axis: int) -> Float[np.ndarray, "..."]:
    """Mean over the defined cells; NaN where there is none."""
    defined = ~np.isnan(cells)
    return np.divide(
        np.where(defined, cells, 0).sum(axis),
        defined.sum(axis),
        out=np.full(cells.sum(axis).shape, np.nan, cells.dtype),
        where=defined.any(axis),
    )


def _ranking(title: str, names: Sequence[str], means: Float[np.ndarray, "n 2"], top: int) -> list[str]:
    columns = []
    for metric in (0, 1):
        order = np.argsort(-np.nan_to_num(means[:, metric], nan=-1.0), kind="stable")[:top]
        columns.append([f"{names[i]:<25} {means[i, metric]:>12.5g}" for i in order])
    rows = enumerate(zip(*columns, strict=True))
    return [f"  {title if i == 0 else '':<12}  {left:<42} {right}" for i, (left, right) in rows]
