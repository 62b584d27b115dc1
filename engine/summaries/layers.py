"""The summary of an impact: the grid of Full, and which tokens, layers and heads matter most."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from engine.findings.terminal import aligned
from engine.questions.question import Question
from engine.runs.impact import Impact
from engine.summaries.ink import Ink
from engine.summaries.lines import best_first, case, grid, hiding, shown_cases


def impact_lines(impact: Impact, question: Question, *, top: int, ink: Ink) -> list[str]:
    """How far each layer's update turns, and the most impactful of everything, all at the query that is shown."""
    shown = shown_cases(impact)
    cells = impact.distances[:, shown]
    title = f"How far each layer's update turns when {hiding(question)} (Full, cosine distance)"
    return [
        *grid(impact, cells[:, :, 0, 1], title=title, show=lambda value: f"{max(value, 0.0):.4f}", ink=ink),
        *_rankings(impact, cells, shown, top),
    ]


def _rankings(impact: Impact, cells: Float[np.ndarray, "l v site 2"], shown: list[int], top: int) -> list[str]:
    """The most impactful tokens and layers (by Full) and heads, by mean distance; each distance ranks on its own."""
    places = [place for place, name in enumerate(impact.variants) if name.startswith("Head_")]
    full, heads = cells[:, :, 0], cells[:, :, places]
    per_layer = len(places)
    what = "tokens" if "masked_positions" not in impact.labels else "groups"
    rows = [
        ["Most impactful", "by mean L2", "", "by mean cosine distance", ""],
        *_ranking(f"  {what}", lambda i: case(impact, shown[i]), _mean(full, axis=0), top),
        *_ranking("  layers", lambda i: f"layer {impact.layers[i]}", _mean(full, axis=1), top),
        *_ranking(
            "  heads",
            lambda i: f"layer {impact.layers[i // per_layer]} {impact.variants[places[i % per_layer]]}",
            _mean(heads, axis=1).reshape(-1, 2),
            top,
        ),
    ]
    return aligned(rows)


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
    orders = [best_first(column, top) for column in means.T]
    rows = [
        [text for metric, index in enumerate(pair) for text in (label(index), _mean_text(means[index, metric].item()))]
        for pair in zip(*orders, strict=True)
    ]
    return [[title if rank == 0 else "", *row] for rank, row in enumerate(rows)]


def _mean_text(mean: float) -> str:
    return "-" if np.isnan(mean) else f"{mean:.5g}"
