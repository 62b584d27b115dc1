"""Heat maps: layers x tokens of a variant, and layers x heads of a token."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
from jaxtyping import Float

from engine.figures.labels import case_names, exact, layer_name
from engine.figures.scales import Scale, scale_of
from engine.figures.views import METRICS, View

WIDTH = 760
WIDEST = 1200
"""Pixels that a map takes by itself: of few columns, and of more columns than ``WIDTH`` has pixels."""
LARGEST_CELL, LEAST_LABEL = (56, 26), 12
EDGED, WRITTEN = 6, 34
"""From how many pixels on a cell has an edge, and room for its number."""


@dataclass(frozen=True)
class Axis:
    """The names along an axis, and what it is."""

    names: Sequence[str]
    title: str


def token_map(view: View) -> alt.LayerChart:
    """Layer x token: the metric of one variant. Neighbours share a column where the tokens outnumber the pixels."""
    layer = [layer_name(each) for each in view.grid.layers]
    values, names, note = _binned(view.of_variant(), case_names(view.cases), view.choices.width or WIDEST)
    title = view.title(f"{METRICS[view.metric]}, by layer and token", [note])
    return _heat_map(view, values, Axis(names, "hidden token"), Axis(layer, "layer"), title)


def head_map(view: View) -> alt.LayerChart:
    """Layer x head: the metric of one token, or the mean over the tokens that are shown."""
    heads, place = view.grid.heads[view.variant], view.token_place()
    cells = view.numbers[..., list(heads.values())]
    known = np.isfinite(cells).sum(axis=1)
    means = np.where(known > 0, np.nansum(cells, axis=1) / np.maximum(known, 1), np.nan).astype(cells.dtype)
    values = means if place is None else cells[:, place]
    what = f"mean over {len(view.cases)} tokens" if place is None else f"of {case_names(view.cases)[place]}"
    title = view.title(f"{METRICS[view.metric]}, by layer and head, {what}")
    layer = [layer_name(each) for each in view.grid.layers]
    return _heat_map(view, values, Axis([str(head) for head in heads], "head"), Axis(layer, "layer"), title)


def _binned(
    values: Float[np.ndarray, "layer case"], names: Sequence[str], most: int
) -> tuple[Float[np.ndarray, "layer column"], Sequence[str], str | None]:
    """No more columns than ``most``: each shows the strongest of its neighbours, and a note says so."""
    size = -(-len(names) // most)
    if size == 1:
        return values, names, None
    starts = range(0, len(names), size)
    columns = [_strongest(values[:, start : start + size]) for start in starts]
    return np.stack(columns, axis=1), [names[start] for start in starts], f"a column: the strongest of {size} tokens"


def _strongest(values: Float[np.ndarray, "layer case"]) -> Float[np.ndarray, " layer"]:
    """The value that is furthest from 0 in every row."""
    place = np.where(np.isnan(values), -1.0, np.abs(values)).argmax(axis=1)
    return values[np.arange(len(values)), place]


def _heat_map(
    view: View, values: Float[np.ndarray, "row column"], columns: Axis, rows: Axis, title: Mapping[str, Any]
) -> alt.LayerChart:
    """Rows x columns of coloured cells, their numbers where there is room, and what has no colour apart."""
    scale = scale_of(values, view.choices.scale, view.theme)
    title = {**title, "subtitle": [*title["subtitle"], *filter(None, [scale.note(values)])]}
    wide, high = _cell(view.choices.width, len(columns.names), len(rows.names))
    records = _records(values, columns.names, rows.names, scale, written=wide >= WRITTEN)
    edge = {"stroke": view.theme.paper, "strokeWidth": 1} if min(wide, high) >= EDGED else {}
    base = alt.Chart(alt.InlineData(values=records)).encode(
        x=alt.X(
            "x:N",
            scale=alt.Scale(domain=list(columns.names)),
            title=columns.title,
            axis=_axis(columns.names, wide, slanted=True),
        ),
        y=alt.Y("y:N", scale=alt.Scale(domain=list(rows.names)), title=rows.title, axis=_axis(rows.names, high)),
        tooltip=[
            alt.Tooltip("x:N", title=columns.title),
            alt.Tooltip("y:N", title=rows.title),
            alt.Tooltip("value:Q", title=view.metric, format=".4g"),
        ],
    )
    legend = alt.Legend(title=None, gradientLength=max(90, min(200, high * len(rows.names))), **scale.ticks())
    scaled = base.transform_filter("datum.state === null").mark_rect(**edge)
    parts: list[alt.Chart] = [
        scaled.encode(color=alt.Color("value:Q", scale=alt.Scale(**scale.words()), legend=legend))
    ]
    parts += [apart(base.mark_rect(**edge), records, view)] if any(each["state"] for each in records) else []
    if wide >= WRITTEN:
        written = base.transform_filter("datum.state === null").mark_text(fontSize=10)
        parts.append(written.encode(text="written:N", color=alt.Color("ink:N", scale=None)))
    chart: alt.LayerChart = alt.layer(*parts).resolve_scale(color="independent")
    return chart.properties(
        width=wide * len(columns.names), height=high * len(rows.names), title=alt.TitleParams(**title)
    )


def apart(marks: alt.Chart, records: Sequence[Mapping[str, Any]], view: View) -> alt.Chart:
    """The cells that have no place on the scale, with a legend that says why."""
    colours = {"exactly 0": view.theme.zero, "no value": view.theme.no_value}
    states = [name for name in colours if any(each["state"] == name for each in records)]
    scale = alt.Scale(domain=states, range=[colours[name] for name in states])
    legend = alt.Legend(title=None, symbolType="square", symbolStrokeColor=view.theme.faint, symbolStrokeWidth=1)
    return marks.transform_filter("datum.state !== null").encode(color=alt.Color("state:N", scale=scale, legend=legend))


def _cell(width: int | None, num_columns: int, num_rows: int) -> tuple[float, int]:
    """Width and height of a cell, in whole pixels where possible: fractions blur the edges of neighbours."""
    wide = (width or WIDTH) / num_columns
    whole = max(1, min(LARGEST_CELL[0], int(wide)))
    height = max(4, min(LARGEST_CELL[1], 480 // num_rows))
    return (wide if width and wide < LARGEST_CELL[0] else whole), height


def _axis(names: Sequence[str], size: float, *, slanted: bool = False) -> alt.Axis:
    """As many labels as there is room for."""
    step = max(1, int(-(-LEAST_LABEL * (1.3 if slanted else 1) // max(size, 0.01))))
    shown = list(names[::step])
    angle: dict[str, Any] = {"labelAngle": -50, "labelAlign": "right"} if slanted and max(map(len, names)) > 3 else {}
    return alt.Axis(values=shown, labelLimit=180, labelOverlap=False, ticks=step > 1, **({"labelAngle": 0} | angle))


def _records(
    values: Float[np.ndarray, "row column"],
    columns: Sequence[str],
    rows: Sequence[str],
    scale: Scale,
    *,
    written: bool,
) -> list[dict[str, Any]]:
    """One record a cell; what is only for cells with a number is left out of others."""
    return [
        {"x": column, "y": row, "value": exact(v), "state": scale.state(float(v))}
        | ({"written": f"{v:.2g}".replace("e-0", "e-"), "ink": scale.ink(float(v))} if written else {})
        for row, line in zip(rows, values, strict=True)
        for column, v in zip(columns, line, strict=True)
    ]
