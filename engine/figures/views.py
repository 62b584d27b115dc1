"""What a figure shows of a grid: the choices of its reader, checked, and its words."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from engine.errors import SelectionError
from engine.figures.grids import EFFECT, Case, Grid
from engine.figures.labels import layer_name, readable, shortened
from engine.figures.scales import THEMES, Theme

METRICS = {
    "cosine_distance": "cosine distance (1 - cos)",
    "l2_distance": "L2 distance",
    "attention_mass": "share of the query's attention",
    "relative_l2": "L2 distance / norm of the unmasked vector",
    "answer_logprob_change": "change of the answer's log-probability (nats)",
    "kl_divergence": "KL divergence of the next token (nats)",
}
SHORT = {
    "cosine": "cosine_distance",
    "l2": "l2_distance",
    "mass": "attention_mass",
    "relative": "relative_l2",
    "change": "answer_logprob_change",
    "kl": "kl_divergence",
}
CHARTS = ("map", "heads", "tokens", "profile", "top")
TAKES = {"token": ("heads", "profile"), "layer": ("tokens", "top"), "top": ("profile", "top")}
"""Options that only some charts have."""
HEADS = ("Head", "Result")
LONGEST_TEXT = 90


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What a reader may choose; None stands for a chart's own default."""

    chart: str = "map"
    metric: str | None = None
    variant: str | None = None
    token: int | None = None
    layer: int | None = None
    top: int | None = None
    hide_first: bool = False
    hide_special: bool = False
    scale: Literal["linear", "log"] = "linear"
    theme: Literal["light", "dark"] = "light"
    width: int | None = None
    title: str | None = None

    def __post_init__(self) -> None:
        """Raise ``SelectionError`` for a word that is none of those there are, and for an option without effect."""
        for name, words in (("chart", CHARTS), ("scale", ("linear", "log")), ("theme", tuple(THEMES))):
            if getattr(self, name) not in words:
                raise SelectionError(f"{name} {getattr(self, name)!r} does not exist; choose {', '.join(words)}")
        for name, charts in TAKES.items():
            if getattr(self, name) is not None and self.chart not in charts:
                raise SelectionError(f"--{name} has no effect on {self.chart}; it goes with {' and '.join(charts)}")
        if self.chart == "top" and self.scale == "log":
            raise SelectionError("bars begin at 0, which a logarithmic scale does not have; leave --scale out of top")
        for name, least in (("width", 100), ("top", 1)):
            value = getattr(self, name)
            if value is not None and not least <= value <= 10_000:
                raise SelectionError(f"{name} {value} is out of range; give {least} to 10000")


@dataclass(frozen=True)
class View:
    """A grid as its reader chose to see it: some of its cases, one of its metrics."""

    grid: Grid
    choices: Choices

    @cached_property
    def theme(self) -> Theme:
        return THEMES[self.choices.theme]

    @cached_property
    def metric(self) -> str:
        """The metric's name in the table."""
        offered = [name for name in self.grid.metrics if name in METRICS]
        wanted = self.choices.metric or offered[0]
        found = SHORT.get(wanted, wanted)
        if found not in offered:
            raise SelectionError(f"the table has no metric {wanted!r}; choose one of: {', '.join(offered)}")
        return found

    @cached_property
    def kept(self) -> list[int]:
        """The places of the cases that are shown."""
        hidden = self.choices
        kept = [
            place
            for place, case in enumerate(self.grid.cases)
            if not (hidden.hide_first and case.positions[0] == 0) and not (hidden.hide_special and case.special)
        ]
        if not kept:
            raise SelectionError("no token is left to show; leave --hide-first or --hide-special out")
        return kept

    @cached_property
    def cases(self) -> list[Case]:
        """The cases that are shown."""
        return [self.grid.cases[place] for place in self.kept]

    @cached_property
    def numbers(self) -> Float[np.ndarray, "layer case variant"]:
        """The metric of the cases that are shown."""
        return self.grid.values[self.metric][:, self.kept]

    @cached_property
    def variant(self) -> str:
        """The variant that is shown; of heads and lists, ``Head`` or ``Result`` stand for all of a kind."""
        offered = list(self.grid.variants)
        kinds = [kind for kind in HEADS if kind in self.grid.heads]
        per_head = self.choices.chart == "heads"
        if per_head and not kinds:
            raise SelectionError("the table has no heads; choose another chart, or measure with heads among the sites")
        wanted = self.choices.variant or (kinds[0] if per_head else offered[0])
        allowed = kinds if per_head else [*offered, *(kinds if self.choices.chart == "top" else [])]
        if wanted not in allowed:
            raise SelectionError(f"{self.choices.chart} has no variant {wanted!r}; choose one of: {', '.join(allowed)}")
        return wanted

    def of_variant(self) -> Float[np.ndarray, "layer case"]:
        """The numbers of the chosen variant."""
        return self.numbers[..., self.grid.variants.index(self.variant)]

    def layer_place(self) -> int | None:
        """Where the chosen layer stands in the grid; None where none was chosen."""
        if self.choices.layer is not None and self.choices.layer not in self.grid.layers:
            there = ", ".join(map(layer_name, self.grid.layers))
            raise SelectionError(f"layer {self.choices.layer} is not in the table; there are: {there}")
        return None if self.choices.layer is None else self.grid.layers.index(self.choices.layer)

    def token_place(self) -> int | None:
        """Which of the shown cases hides the chosen token; None where none was chosen."""
        wanted = self.choices.token
        places = [place for place, case in enumerate(self.cases) if wanted in case.positions]
        if wanted is not None and not places:
            raise SelectionError(f"token {wanted} is not shown; give the position of one that the table has")
        return places[0] if wanted is not None else None

    def title(self, what: str, notes: Sequence[str | None] = ()) -> dict[str, Any]:
        """The title in Vega-Lite's words: what is shown, of which prompt and model, and what to know about it."""
        grid, choices = self.grid, self.choices
        of = f"prompt {grid.prompt_id}" if grid.prompt_id is not None else ""
        text = f"“{shortened(readable(grid.text), LONGEST_TEXT)}”" if grid.text else ""
        read = f"read at position {grid.query}" if grid.query is not None else ""
        model = str(grid.provenance.get("description", "")).partition(" (")[0]
        hidden = len(grid.cases) - len(self.cases)
        left_out = f"{hidden} token{'s' * (hidden > 1)} left out" if hidden else ""
        lines = [
            [of, text, read],
            [shortened(readable(model), LONGEST_TEXT), left_out, *(note or "" for note in notes)],
        ]
        joined = [" · ".join(filter(None, line)) for line in lines]
        name = "" if self.variant == EFFECT else f"{self.variant}: "
        heading = choices.title if choices.title is not None else name + what
        return {"text": readable(heading), "subtitle": [line for line in joined if line]}
