"""Numbers -> colours: linear and logarithmic scales, safe for colour-blind readers, on light and on dark paper.

A scale is data, in the words of Vega-Lite. Stronger is further from the paper: darker on light paper, lighter on dark.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from engine.errors import SelectionError

FLOOR = 1e-6
"""A logarithmic scale spans no more than this share of its largest value."""
DIVERGING_FLOOR = 1e-3
"""Below this share of the largest value, a logarithmic scale with two signs is linear."""
ZERO, NO_VALUE = "exactly 0", "no value"
DARK_INK, LIGHT_INK = "#1b1b1b", "#ffffff"


@dataclass(frozen=True)
class Theme:
    """The colours of a figure; ``one_sign`` goes from weak to strong, ``two_signs`` from negative to positive."""

    paper: str
    ink: str
    faint: str
    zero: str
    no_value: str
    one_sign: tuple[str, ...]
    two_signs: tuple[str, ...]
    lines: tuple[str, ...]


OKABE_ITO = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#882255", "#999933")
THEMES = {
    "light": Theme(
        paper="#ffffff",
        ink="#222222",
        faint="#dddddd",
        zero="#ffffff",
        no_value="#b8b8b8",
        one_sign=("#f4f8e1", "#d3ecc4", "#9bd5be", "#5ab8bf", "#3290bd", "#2a64a7", "#26367f", "#151443"),
        two_signs=("#8a3c04", "#c8681c", "#f0a95e", "#fbdcb9", "#f5f5f5", "#c9dff0", "#7fb4da", "#3079b5", "#123f75"),
        lines=OKABE_ITO,
    ),
    "dark": Theme(
        paper="#14161a",
        ink="#e6e6e6",
        faint="#3a3e45",
        zero="#14161a",
        no_value="#6b6b6b",
        one_sign=("#262043", "#3b3a7a", "#35608d", "#277f8e", "#1fa187", "#49c16d", "#9fd938", "#fde725"),
        two_signs=("#ffb868", "#e08a35", "#a65f1e", "#5c3a1a", "#2a2c30", "#1f3f5c", "#2c6fa6", "#57a5e0", "#a9d8ff"),
        lines=("#56b4e9", "#e69f00", "#2fc79a", "#e59ac6", "#f0e442", "#ff8a4a", "#a9a9ff", "#c8c86a"),
    ),
}


@dataclass(frozen=True)
class Scale:
    """From ``low`` to ``high``; logarithmic or not, of one sign or two (then ``low`` is ``-high``)."""

    low: float
    high: float
    log: bool
    two_signs: bool
    theme: Theme

    def words(self) -> dict[str, Any]:
        """The scale as Vega-Lite's."""
        kind: dict[str, Any] = {"type": "linear"}
        if self.log:
            kind = {"type": "symlog", "constant": self.high * DIVERGING_FLOOR} if self.two_signs else {"type": "log"}
        colours = self.theme.two_signs if self.two_signs else self.theme.one_sign
        return kind | {"domain": [self.low, self.high], "range": list(colours), "clamp": True, "nice": False}

    def ticks(self) -> dict[str, Any]:
        """What a legend or an axis writes beside a logarithmic scale: powers of ten, in Vega-Lite's words."""
        if not self.log:
            return {"format": "~g"}
        least = self.high * DIVERGING_FLOOR if self.two_signs else self.low
        powers = [10.0**n for n in range(int(np.ceil(np.log10(least))), int(np.floor(np.log10(self.high))) + 1)]
        powers = powers if len(powers) > 1 else [least, self.high]
        values = [*(-each for each in reversed(powers)), 0.0, *powers] if self.two_signs else powers
        shown = "datum.value == 0 ? '0' : format(datum.value, '.1~e')"
        return {"values": values, "labelExpr": shown}

    def strength(self, value: float) -> float:
        """How far a value's colour is from the paper's, from 0 to 1."""
        share = min(abs(value) / self.high, 1.0)
        if not self.log:
            return share
        if self.two_signs:
            return float(np.log1p(share / DIVERGING_FLOOR) / np.log1p(1 / DIVERGING_FLOOR))
        return float(1 - np.log(max(share, self.low / self.high)) / np.log(self.low / self.high))

    def ink(self, value: float) -> str:
        """The colour of text that can be read on a value's colour."""
        strong_is_dark = self.theme.paper == THEMES["light"].paper
        return LIGHT_INK if (self.strength(value) > 0.5) == strong_is_dark else DARK_INK

    def state(self, value: float) -> str | None:
        """Why a value has no place on the scale; None where it has one."""
        if np.isnan(value):
            return NO_VALUE
        return ZERO if self.log and not self.two_signs and value == 0 else None

    def note(self, values: Float[np.ndarray, "..."]) -> str | None:
        """What the legend cannot say of values beyond the scale's end."""
        beyond = self.log and not self.two_signs and bool(np.any((values > 0) & (values < self.low)))
        return f"values below {self.low:.1e} have the colour of {self.low:.1e}" if beyond else None


def scale_of(values: Float[np.ndarray, "..."], kind: Literal["linear", "log"], theme: Theme) -> Scale:
    """A scale that fits ``values`` (NaN: no value). Raises ``SelectionError`` where none is defined."""
    known = values[np.isfinite(values)].astype(np.float64)
    if not known.size:
        raise SelectionError("no value is defined in what was chosen; choose another variant, metric or query position")
    high = float(np.abs(known).max()) or 1.0
    if (known < 0).any():
        return Scale(-high, high, kind == "log", True, theme)
    if kind == "linear":
        return Scale(0.0, high, False, False, theme)
    positive = known[known > 0]
    low = max(float(positive.min(initial=high)), high * FLOOR)
    return Scale(low if low < high else high / 10, high, True, False, theme)
