"""A heat map of layers and tokens for a terminal, as small as it has to be."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from engine.findings.terminal import number
from engine.summaries.ink import Ink

BLOCKS = " ▁▂▃▄▅▆▇█"
MOST_LAYERS, WIDEST_CELL = 48, 4
TICK_COLUMNS = 8
UNDEFINED = "·"


def heat_map(
    cells: Float[np.ndarray, "l v"], *, layers: Sequence[str], positions: Sequence[int], ink: Ink, title: str
) -> list[str]:
    """A block for each layer and token, coloured (without colours: as high) as its share of the largest value.

    What does not fit into the terminal's width, or into ``MOST_LAYERS`` lines, is put together, and the largest of it
    shown; the title says so.
    """
    margin = max(5, *map(len, layers)) + 1
    space = max((ink.columns or 80) - margin - 1, 1)
    per_column, per_row = -(-len(positions) // space), -(-len(layers) // MOST_LAYERS)
    shares = _largest(_largest(np.abs(cells), per_row, axis=0), per_column, axis=1)
    most = float(np.nanmax(shares, initial=0.0))
    wide = max(1, min(WIDEST_CELL, space // shares.shape[1]))
    scaled = shares / max(most, float(np.finfo(np.float32).tiny))
    rows = [
        f"{label:>{margin - 1}} {''.join(_cell(share, wide, ink) for share in row)}"
        for label, row in zip(layers[::per_row], scaled.tolist(), strict=True)
    ]
    ticks = _ticks(positions[::per_column], wide)
    return [
        _titled(title, per_row, per_column),
        "",
        f"{'layer':>{margin - 1}} {ticks}",
        *rows,
        _legend(most, margin, ink),
    ]


def _largest(values: Float[np.ndarray, "l v"], together: int, *, axis: int) -> Float[np.ndarray, "l2 v2"]:
    """The largest of so many neighbours each; NaN where none is defined."""
    starts = np.arange(0, values.shape[axis], together)
    return np.fmax.reduceat(values, starts, axis=axis)


def _cell(share: float, width: int, ink: Ink) -> str:
    if np.isnan(share):
        return UNDEFINED * width
    if ink.depth:
        return ink.block(share, width=width)
    return BLOCKS[round(share * (len(BLOCKS) - 1))] * width


def _ticks(positions: Sequence[int], width: int) -> str:
    """Positions over their columns, as many as fit."""
    every = max(1, -(-TICK_COLUMNS // width))
    line = "".join(f"{position:<{every * width}}" for position in positions[::every])
    return line[: len(positions) * width].rstrip()


def _titled(title: str, per_row: int, per_column: int) -> str:
    joined = [
        f"{count} {what}" for count, what in ((per_row, "layers"), (per_column, "neighbouring tokens")) if count > 1
    ]
    return f"{title}; the largest of {' and '.join(joined)} each" if joined else title


def _legend(most: float, margin: int, ink: Ink) -> str:
    """The scale, from 0 to the largest value."""
    steps = [step / 8 for step in range(9)]
    return f"{'scale':>{margin - 1}} 0 {''.join(_cell(share, 1, ink) for share in steps)} {number(most)}"
