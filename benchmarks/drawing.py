"""Curves on logarithmic axes, as SVG text; needs matplotlib, which only this file knows."""

import io
from collections.abc import Sequence
from importlib.util import find_spec

Curve = tuple[str, str, Sequence[int], Sequence[float]]
"""What grows, what stays, the sizes, and the seconds that each takes."""


def draw(curves: Sequence[Curve]) -> tuple[str | None, str]:
    """One panel a curve, beside straight growth; no SVG without matplotlib. The second is a note that says which."""
    if find_spec("matplotlib") is None:
        return None, "the figure was left out: matplotlib is not installed; pip install -e '.[benchmarks]'"
    return _svg(curves), "the figure lies beside this report as SVG; the grey lines show growth in proportion"


def _svg(curves: Sequence[Curve]) -> str:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(curves), 3.4), layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for axes, (what, fixed, sizes, seconds) in zip(panels, curves, strict=True):
        straight = [seconds[-1] * size / sizes[-1] for size in sizes]
        axes.loglog(sizes, straight, color="0.75", linewidth=1)
        axes.loglog(sizes, seconds, marker="o", color="black")
        axes.set(title=fixed, xlabel=what, ylabel="seconds")
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "benchmarks"}):
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None})
    return text.getvalue()
