"""The example notebook: its cells run, in their order, and what it shows is what they give."""

import json
from pathlib import Path

import altair
import polars as pl

NOTEBOOK = Path(__file__).parent.parent / "benchmarks" / "notebooks" / "first_look.ipynb"


def value_of(source, names):
    """Run a cell; the value of its last line."""
    *before, last = source.rstrip().split("\n")
    start = next(i for i in range(len(before), -1, -1) if _is_whole("\n".join([*before, last][i:])))
    lines = [*before, last]
    exec("\n".join(lines[:start]), names)
    return eval("\n".join(lines[start:]), names)


def _is_whole(text):
    try:
        compile(text, "cell", "eval")
    except SyntaxError:
        return False
    return True


def test_the_notebook_runs_and_shows_its_outputs():
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    names = {}
    for cell in cells:
        found = value_of("".join(cell["source"]), names)
        (shown,) = cell["outputs"]
        if isinstance(found, pl.DataFrame):
            assert shown["data"]["text/html"]
            assert "".join(shown["data"]["text/plain"]).startswith(f"shape: ({len(found)}, {found.width})")
        else:
            assert isinstance(found, altair.TopLevelMixin)
            assert "<svg" in "".join(shown["data"]["image/svg+xml"])
    altair.renderers.enable("default")
