"""The figure of a report that brings none of its own: bars of its main figures, one panel a workload."""

import re
from collections.abc import Iterable
from itertools import groupby

from benchmarks.drawing import MISSING, Panel, can_draw, draw_bars
from benchmarks.report import Report, Row

DRAWN = {
    "speed": r"time",
    "peers": r"time",
    "startup": r"time",
    "sets": r"time",
    "questions": r"time",
    "cuda": r"time",
    "memory": r"peak memory of a call",
    "accuracy": r"relative error, (.* L2), all cells, p99",
}
"""Suite -> the metrics that its figure shows; what the pattern captures stands in the label."""
UNITS = {"1": "relative error"}


def illustrated(report: Report) -> tuple[str | None, str]:
    """The figure as SVG, if there are figures to show and matplotlib is installed; and a note on it."""
    panels = list(panels_of(report.rows, DRAWN.get(report.suite, "")))
    if not panels:
        return None, ""
    if not can_draw():
        return None, MISSING
    return draw_bars(panels), "the figure lies beside this report as SVG; its axes are logarithmic"


def panels_of(rows: Iterable[Row], pattern: str) -> Iterable[Panel]:
    """One panel for each workload and length with rows whose metric matches the whole pattern, and are above 0."""
    matched = [(row, found) for row in rows if (found := re.fullmatch(pattern, row.metric)) and row.median > 0]
    for title, group in groupby(matched, key=lambda pair: _title(pair[0])):
        members = list(group)
        labels = [" ".join((row.provider, *found.groups())) for row, found in members]
        unit = members[0][0].unit
        yield title, UNITS.get(unit, unit), labels, [row.median for row, _ in members]


def _title(row: Row) -> str:
    length = f", {row.x} tokens" if row.x else ""
    return f"{row.workload}{length}, {row.dtype}"
