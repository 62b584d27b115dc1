"""A report in three forms: tables for readers (stdout, Markdown) and one long CSV for programs."""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

from benchmarks.bars import Verdict, judge
from benchmarks.machine import Provenance

COLUMNS = (
    "suite",
    "provider",
    "metric",
    "unit",
    "workload",
    "dtype",
    "x",
    "median",
    "min",
    "max",
    "device",
    "versions",
    "commit",
    "date",
)


class Labels(TypedDict):
    """What a figure belongs to."""

    workload: str
    dtype: str
    x: int


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured figure: ``provider`` is what was measured, ``x`` the prompt length in tokens or what else grows."""

    provider: str
    metric: str
    unit: str
    workload: str
    dtype: str
    x: int
    median: float
    minimum: float
    maximum: float

    @classmethod
    def of(
        cls, provider: str, metric: str, unit: str, values: Sequence[float], *, workload: str, dtype: str, x: int
    ) -> "Row":
        """``values`` are (median, min, max), or one figure that stands for all three."""
        median, minimum, maximum = values if len(values) == 3 else (*values,) * 3
        labels = {"provider": provider, "metric": metric, "unit": unit, "workload": workload, "dtype": dtype}
        return cls(**labels, x=x, median=median, minimum=minimum, maximum=maximum)


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table for readers; cells are text already."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a suite found. ``checks`` says of each statement that has to hold whether it held.

    ``judged`` sets the figures beside the bars. ``drawing`` is a figure as SVG.
    """

    suite: str
    command: str
    provenance: Provenance
    conditions: Sequence[str] = ()
    tables: Sequence[Table] = ()
    rows: Sequence[Row] = ()
    notes: Sequence[str] = ()
    figures: dict[str, float] = field(default_factory=dict)
    checks: dict[str, bool] = field(default_factory=dict)
    judged: bool = False
    drawing: str | None = None

    @property
    def passed(self) -> bool:
        return all(self.checks.values())

    @property
    def verdicts(self) -> list[Verdict]:
        return judge(self.suite, self.rows) if self.judged else []


def to_markdown(report: Report) -> str:
    """The whole report as Markdown that is also readable as plain text."""
    made = report.provenance
    parts = [
        f"# Benchmark: {report.suite}, {made.date}",
        f"`{report.command}`",
        _bullets(
            [
                f"machine: {made.device}, {made.threads} threads; load average before the run {made.load}",
                f"versions: {made.versions}; commit {made.commit or 'unknown'}",
                *report.conditions,
            ]
        ),
        *(f"## {table.title}\n\n{_grid(table)}" for table in (*_bars(report.verdicts), *report.tables)),
        _section("Checks", [f"{'holds' if held else 'FAILS'}: {text}" for text, held in report.checks.items()]),
        _section("Notes", report.notes),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _bars(verdicts: Sequence[Verdict]) -> list[Table]:
    """The bars beside the figures; no table where none was measured."""
    header = ("workload", "what", "figure", "bar", "verdict")
    title = "Bars, set for float32 on 2 CPU cores"
    return [Table(title=title, header=header, rows=tuple(v.cells for v in verdicts))] if verdicts else []


def _section(title: str, lines: Sequence[str]) -> str:
    return f"## {title}\n\n{_bullets(lines)}" if lines else ""


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _grid(table: Table) -> str:
    """A Markdown table with padded columns; columns of numbers are set to the right."""
    columns = list(zip(table.header, *table.rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    right = [all(cell[:1].isdigit() for cell in column[1:]) for column in columns]
    rule = tuple("-" * (width - 1) + (":" if r else "-") for width, r in zip(widths, right, strict=True))
    return "\n".join(_line(row, widths, right) for row in (table.header, rule, *table.rows))


def _line(row: tuple[str, ...], widths: Sequence[int], right: Sequence[bool]) -> str:
    cells = (cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(row, widths, right, strict=True))
    return f"| {' | '.join(cells)} |"


def to_csv(report: Report) -> str:
    """The long form: one line per figure, each with its provenance."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    made = report.provenance
    for row in report.rows:
        values = (f"{value:.6g}" for value in (row.median, row.minimum, row.maximum))
        labels = (row.provider, row.metric, row.unit, row.workload, row.dtype, row.x)
        writer.writerow((report.suite, *labels, *values, made.device, made.versions, made.commit, made.date))
    return text.getvalue()


def write_report(report: Report, folder: Path) -> list[Path]:
    """Write ``<date>-<device>-<suite>`` as ``.md`` and ``.csv``, and ``.svg`` if there is a drawing; their paths."""
    device = re.sub(r"[^a-z0-9]+", "-", report.provenance.device.lower()).strip("-")
    stem = f"{report.provenance.date}-{device}-{report.suite}"
    folder.mkdir(parents=True, exist_ok=True)
    drawing = {} if report.drawing is None else {"svg": report.drawing}
    link = "".join(f"\n![{report.suite}]({stem}.{kind})\n" for kind in drawing)
    texts = {"md": to_markdown(report) + link, "csv": to_csv(report), **drawing}
    files = {folder / f"{stem}.{kind}": text for kind, text in texts.items()}
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
    return list(files)
