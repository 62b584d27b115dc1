"""Names of tokens and layers as a figure writes them: one line each, no two alike."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.figures.grids import Case


def readable(text: str) -> str:
    """Text of one line: line breaks, tabs and what cannot be printed as visible signs."""
    signs = {"\n": "⏎", "\t": "⇥", "\r": "␍"}
    return "".join(signs.get(c, c if c.isprintable() else f"\\u{ord(c):04x}") for c in text)


def shortened(text: str, most: int) -> str:
    """``text``, or its beginning and an ellipsis."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def case_names(cases: Sequence[Case], *, most: int = 18) -> list[str]:
    """A label for each case that no other has: the positions, then the text."""
    names: dict[str, None] = {}
    for case in cases:
        name, count = _case_name(case, most), 2
        while name in names:
            name, count = f"{_case_name(case, most)} ({count})", count + 1
        names[name] = None
    return list(names)


def _case_name(case: Case, most: int) -> str:
    first, last = case.positions[0], case.positions[-1]
    run = case.positions == tuple(range(first, last + 1))
    place = str(first) if first == last else f"{first}–{last}" if run else "+".join(map(str, case.positions))
    return f"{shortened(place, 12)} {shortened(readable(case.text.strip(' ')), most)}"


def layer_name(layer: int | None) -> str:
    """A layer as an axis names it."""
    return "all" if layer is None else str(layer)


def exact(value: "np.floating[Any]") -> float | None:
    """A number as JSON holds it: the shortest that gives its own type's value back, None for NaN."""
    return None if np.isnan(value) else float(str(value))
