"""Figures beside the maps: the prompt as a coloured strip, profiles over layers, the strongest cells."""

from collections.abc import Mapping
from itertools import cycle, islice
from typing import Any
from unicodedata import east_asian_width

import altair as alt
import numpy as np
from jaxtyping import Float

from engine.errors import SelectionError
from engine.figures.labels import case_names, exact, layer_name, readable, shortened
from engine.figures.maps import WIDTH, apart
from engine.figures.scales import Scale, scale_of
from engine.figures.views import HEADS, METRICS, View

CHARACTER, LINE = 7.3, 24
"""Pixels of a character in the strip's fixed-width font, and of a line."""
PROFILES, STRONGEST = 6, 20
MEAN = "mean of all"
FONT = "Roboto Mono, Menlo, Consolas, monospace"


def token_strip(view: View) -> alt.LayerChart:
    """The prompt as running text, every token in the colour of its strongest layer, or of one layer."""
    cells, layer = view.of_variant(), view.layer_place()
    place = np.where(np.isnan(cells), -1.0, np.abs(cells)).argmax(axis=0) if layer is None else layer
    values = cells[place, np.arange(cells.shape[1])]
    scale, width = scale_of(values, view.choices.scale, view.theme), view.choices.width or WIDTH
    where = "in its strongest layer" if layer is None else f"in layer {layer_name(view.grid.layers[layer])}"
    title = view.title(f"{METRICS[view.metric]} of each token, {where}", [scale.note(values)])
    rest = zip(_laid_out(view, int(width / CHARACTER)), case_names(view.cases), values, strict=True)
    records = [{**box, "token": name, **_painted(value, scale)} for box, name, value in rest]
    lines, longest = 1 + max(record["y"] for record in records), max(record["end"] for record in records)
    base = alt.Chart(alt.InlineData(values=records)).encode(
        x=alt.X("start:Q", axis=None, scale=alt.Scale(domain=[0, longest], nice=False)),
        y=alt.Y("y:O", axis=None),
        tooltip=[alt.Tooltip("token:N"), alt.Tooltip("value:Q", title=view.metric, format=".4g")],
    )
    known, box = "datum.state === null", {"stroke": view.theme.paper, "height": LINE - 4}
    colour = alt.Color(
        "value:Q", scale=alt.Scale(**scale.words()), legend=alt.Legend(title=None, gradientLength=90, **scale.ticks())
    )
    parts = [base.transform_filter(known).mark_rect(**box).encode(x2="end:Q", color=colour)]
    if any(record["state"] for record in records):
        parts.append(apart(base.mark_rect(**box).encode(x2="end:Q"), records, view))
    text = base.mark_text(align="left", font=FONT, fontSize=12, dx=2)
    parts.append(text.encode(x="text_start:Q", text="text:N", color=alt.Color("ink:N", scale=None)))
    chart: alt.LayerChart = alt.layer(*parts).resolve_scale(color="independent")
    return chart.properties(width=longest * CHARACTER, height=LINE * lines, title=alt.TitleParams(**title))


def profiles(view: View) -> alt.LayerChart:
    """Over the layers: the strongest tokens and the mean of all; of one chosen token, every kind of variant."""
    place, names = view.token_place(), case_names(view.cases)
    if len(view.grid.layers) < 2:
        raise SelectionError("a profile needs two layers or more; choose the chart tokens or top")
    if place is None:
        values = view.of_variant()
        strength = np.nanmax(np.where(np.isnan(values), -1.0, np.abs(values)), axis=0)
        chosen = np.argsort(-strength, kind="stable")[: view.choices.top or PROFILES]
        curves = {names[each]: values[:, each] for each in sorted(chosen)} | {MEAN: _mean(values)}
        title = view.title(f"{METRICS[view.metric]} over the layers, the strongest tokens")
    else:
        curves = _kinds(view, place)
        title = view.title(f"{METRICS[view.metric]} over the layers, {names[place]}")
        title["text"] = title["text"].removeprefix(f"{view.variant}: ")
    return _curves(view, curves, title)


def strongest(view: View) -> alt.LayerChart:
    """Bars of the cells that are furthest from 0: layer and token of a variant, or with heads of all heads."""
    every = view.variant in HEADS
    places = list(view.grid.heads[view.variant].values()) if every else [view.grid.variants.index(view.variant)]
    layers = range(len(view.grid.layers)) if view.layer_place() is None else [view.layer_place() or 0]
    cells = view.numbers[np.ix_(layers, range(len(view.cases)), places)]
    order = np.argsort(-np.where(np.isnan(cells), -1.0, np.abs(cells)), axis=None, kind="stable")
    tokens, records = case_names(view.cases, most=28), []
    for flat in order[: view.choices.top or STRONGEST]:
        layer, case, variant = np.unravel_index(flat, cells.shape)
        head = f"{view.grid.variants[places[variant]].replace('_', ' ')}, " if every else ""
        name = f"layer {layer_name(view.grid.layers[layers[layer]])}, {head}{tokens[case]}"
        records.append({"cell": name, "value": exact(cells.flat[flat])})
    scale_of(cells, "linear", view.theme)
    title = view.title(f"{METRICS[view.metric]}, the {len(records)} strongest cells")
    records = [each for each in records if each["value"] is not None]
    cells_shown = [each["cell"] for each in records]
    base = alt.Chart(alt.InlineData(values=records)).encode(
        y=alt.Y("cell:N", scale=alt.Scale(domain=cells_shown), title=None, axis=alt.Axis(labelLimit=320)),
        x=alt.X("value:Q", title=METRICS[view.metric], axis=alt.Axis(format="~g")),
    )
    negative = base.transform_filter("datum.value < 0")
    positive = base.transform_filter("datum.value >= 0")
    written, ink = alt.Text("value:Q", format=".3~g"), view.theme.ink
    parts = [
        positive.mark_bar(color=view.theme.lines[0]),
        negative.mark_bar(color=view.theme.lines[1]),
        positive.mark_text(align="left", dx=4, color=ink).encode(text=written),
        negative.mark_text(align="left", dx=4, color=ink).encode(x=alt.XDatum(0), text=written),
    ]
    chart: alt.LayerChart = alt.layer(*parts)
    return chart.properties(width=view.choices.width or 420, height=18 * len(records), title=alt.TitleParams(**title))


def _painted(value: np.floating[Any], scale: Scale) -> dict[str, Any]:
    """A value as a record: why it is off the scale, if it is, and the colour of text upon it."""
    return {"value": exact(value), "state": scale.state(float(value)), "ink": scale.ink(float(value))}


def _laid_out(view: View, most: int) -> list[dict[str, Any]]:
    """Where every token stands, in lines of ``most`` characters, and its text without spaces in front."""
    boxes, x, y = [], 0.0, 0
    for case in view.cases:
        text = shortened(readable(case.text) or "∅", min(most, 60))
        size = sum(2 if east_asian_width(sign) in "WF" else 1 for sign in text) + 0.5
        if x and x + size > most:
            x, y = 0.0, y + 1
        spaces = len(text) - len(text.lstrip(" "))
        boxes.append({"start": x, "end": x + size, "y": y, "text": text[spaces:], "text_start": x + spaces})
        x, y = (0.0, y + 1) if "\n" in case.text else (x + size, y)
    return boxes


def _mean(values: Float[np.ndarray, "layer case"]) -> Float[np.ndarray, " layer"]:
    """Over the cases that have a value; NaN where none has."""
    known = np.isfinite(values).sum(axis=1)
    return np.where(known > 0, np.nansum(values, axis=1) / np.maximum(known, 1), np.nan).astype(values.dtype)


def _kinds(view: View, case: int) -> dict[str, Float[np.ndarray, " layer"]]:
    """Every variant without a head, and the means over the heads, for one case."""
    heads = {place for places in view.grid.heads.values() for place in places.values()}
    single = {n: view.numbers[:, case, v] for v, n in enumerate(view.grid.variants) if v not in heads}
    means = {f"mean {k}": _mean(view.numbers[:, case, list(p.values())]) for k, p in view.grid.heads.items()}
    return single | means


def _curves(view: View, curves: Mapping[str, Float[np.ndarray, " layer"]], title: Mapping[str, Any]) -> alt.LayerChart:
    """One line for each name, in colours that stay apart; the mean of all in dashes and the colour of ink."""
    log = view.choices.scale == "log"
    scale = scale_of(np.stack(list(curves.values())), view.choices.scale, view.theme)
    gaps = any(log and not scale.two_signs and (line == 0).any() for line in curves.values())
    notes = ["exactly 0 is not drawn"] if gaps else []
    rows = [(name, layer, v) for name, line in curves.items() for layer, v in zip(view.grid.layers, line, strict=True)]
    records = [
        {"line": n, "layer": layer_name(layer), "value": None if scale.state(v) else exact(v)} for n, layer, v in rows
    ]
    words = scale.words()
    del words["range"]
    axis = words if log else {"zero": True}
    colours = [*islice(cycle(view.theme.lines), len(curves))]
    dashes = [[5, 4] if name == MEAN else [1, 0] for name in curves]
    if MEAN in curves:
        colours[list(curves).index(MEAN)] = view.theme.ink
    key = alt.Legend(title=None, symbolType="stroke", symbolStrokeWidth=2, symbolOpacity=1, labelLimit=220)
    base = alt.Chart(alt.InlineData(values=records)).encode(
        x=alt.X("layer:O", sort=None, title="layer", axis=alt.Axis(labelAngle=0, labelOverlap=True)),
        y=alt.Y("value:Q", title=METRICS[view.metric], scale=alt.Scale(**axis), axis=alt.Axis(**scale.ticks())),
        color=alt.Color("line:N", sort=None, legend=key, scale=alt.Scale(domain=list(curves), range=colours)),
        tooltip=[alt.Tooltip("line:N"), alt.Tooltip("layer:O"), alt.Tooltip("value:Q", format=".4g")],
    )
    dash = alt.StrokeDash("line:N", sort=None, legend=key, scale=alt.Scale(domain=list(curves), range=dashes))
    lines = base.mark_line(strokeWidth=2).encode(strokeDash=dash)
    words = {**title, "subtitle": [*title["subtitle"], *notes]}
    chart: alt.LayerChart = alt.layer(lines, base.mark_point(filled=True, size=28))
    return chart.properties(width=view.choices.width or 520, height=280, title=alt.TitleParams(**words))
