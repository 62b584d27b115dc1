"""Figures of reports, as SVG text; needs matplotlib, which only this file knows."""

import io
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any

Curve = tuple[str, str, Sequence[int], Sequence[float]]
"""What grows, what stays, the sizes, and the seconds that each takes."""
Panel = tuple[str, str, Sequence[str], Sequence[float]]
"""Title, unit, and the labels and values of its bars."""

PANELS_IN_A_ROW = 2
MISSING = "the figure was left out: matplotlib is not installed; pip install -e '.[benchmarks]'"


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def draw(curves: Sequence[Curve]) -> tuple[str | None, str]:
    """One panel a curve, beside straight growth; no SVG without matplotlib. The second is a note that says which."""
    if not can_draw():
        return None, MISSING
    figure = _figure(width=4 * len(curves), height=3.4)
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for axes, (what, fixed, sizes, seconds) in zip(panels, curves, strict=True):
        straight = [seconds[-1] * size / sizes[-1] for size in sizes]
        axes.loglog(sizes, straight, color="0.75", linewidth=1)
        axes.loglog(sizes, seconds, marker="o", color="black")
        axes.set(title=fixed, xlabel=what, ylabel="seconds")
    return _svg(figure), "the figure lies beside this report as SVG; the grey lines show growth in proportion"


def draw_bars(panels: Sequence[Panel]) -> str:
    """One panel of horizontal bars for each workload, its values on a logarithmic axis and written beside them."""
    num_rows = -(-len(panels) // PANELS_IN_A_ROW)
    tallest = max(len(labels) for _, _, labels, _ in panels)
    figure = _figure(width=7 * min(len(panels), PANELS_IN_A_ROW), height=num_rows * (1 + 0.3 * tallest))
    places = figure.subplots(num_rows, min(len(panels), PANELS_IN_A_ROW), squeeze=False).flat
    for axes, panel in zip(places, _padded(panels, num_rows), strict=False):
        if panel is None:
            axes.set_axis_off()
            continue
        title, unit, labels, values = panel
        bars = axes.barh(
            range(len(labels)), values, color=["black" if "engine" in label else "0.6" for label in labels]
        )
        axes.bar_label(bars, [f"{value:.3g}" for value in values], padding=3)
        axes.set(title=title, xlabel=unit, xscale="log", yticks=range(len(labels)), yticklabels=labels)
        axes.set_xlim(min(values) / 2, max(values) * (max(values) / min(values)) ** 0.25 * 2)
        axes.invert_yaxis()
    return _svg(figure)


def _padded(panels: Sequence[Panel], num_rows: int) -> Iterator[Panel | None]:
    yield from panels
    yield from [None] * (num_rows * min(len(panels), PANELS_IN_A_ROW) - len(panels))


def _figure(*, width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _svg(figure: Any) -> str:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "benchmarks"}):
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None})
    return text.getvalue()
