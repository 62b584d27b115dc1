"""Options of the main command that also draw what it measured: ``--plot`` and ``--report``."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import SelectionError

if TYPE_CHECKING:
    import polars as pl


def add_options(parser: argparse.ArgumentParser) -> None:
    """Where the figure and the page go."""
    group = parser.add_argument_group("pictures, beside the table")
    group.add_argument(
        "--plot", metavar="FIGURE", help="a heat map, layer x token: .png, .svg, .pdf or .html; see plot"
    )
    group.add_argument("--report", metavar="PAGE", help="a page to look at, .html; see report")


def check(arguments: argparse.Namespace) -> None:
    """Raise, before any work is done, the ``ResultsError`` that ``draw`` would raise for its files, or a
    ``SelectionError`` for a figure of a set.
    """
    if arguments.plot is not None:
        if arguments.prompts is not None:
            raise SelectionError("--plot draws one prompt; measure the set, then: plot FOLDER --prompt-id ID")
        from engine.figures.charts import require_charts
        from engine.figures.saving import check_figure

        check_figure(arguments.plot)
        require_charts()
    if arguments.report is not None:
        from engine.files import require_writable
        from engine.pages.page import require_page_name

        require_page_name(arguments.report)
        require_writable(arguments.report)


def draw(
    arguments: argparse.Namespace, results: "pl.DataFrame | Path", provenance: Mapping[str, Any] | None = None
) -> list[str]:
    """Write what was asked for; a line about each file. Raises ``ResultsError``."""
    said = []
    if arguments.plot is not None:
        from engine.figures.charts import plot
        from engine.figures.saving import save_figure

        save_figure(plot(results, provenance=provenance), arguments.plot)
        said.append(f"heat map -> {arguments.plot}")
    if arguments.report is not None:
        from engine.pages.page import write_report

        write_report(results, arguments.report, provenance=provenance)
        said.append(f"page -> {arguments.report}")
    return said
