"""A chart as a file: PNG, SVG, PDF, or HTML that needs no network; the suffix of the name says which."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import ResultsError
from engine.files import FilePath, new_file, require_writable, shown

if TYPE_CHECKING:
    import altair as alt

PIXELS = 2
"""Dots of a PNG for each pixel of the chart."""
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>mask-impact</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval';
 style-src 'unsafe-inline'; img-src data: blob:">
<style>body {{ margin: 0; background: {paper} }}</style></head>
<body><div id="chart"></div>
<script>{program}</script>
<script type="application/json" id="specification">{specification}</script>
<script>vegaEmbed("#chart", JSON.parse(document.getElementById("specification").textContent),
 {{renderer: "svg", actions: {{export: true, source: false, compiled: false, editor: false}}}});</script>
</body></html>
"""


def check_figure(path: FilePath) -> None:
    """Raise the ``ResultsError`` that ``save_figure`` would raise for ``path``, before the work is done."""
    _writer(path)
    require_writable(path)


def save_figure(chart: "alt.LayerChart", path: FilePath) -> None:
    """Write ``chart`` to ``path`` (``.png``, ``.svg``, ``.pdf``, ``.html``), whole or not at all.

    Raises ``ResultsError`` for another suffix, and for a folder or disk that does not take the file.
    """
    data = _writer(path)(chart.to_dict())
    with new_file(path) as file:
        file.write(data)


def _writer(path: FilePath) -> Callable[[dict[str, Any]], bytes]:
    suffix = Path(path).suffix.lower()
    if suffix not in WRITERS:
        raise ResultsError(f"{shown(path)} has no suffix of a figure; end the name in {', '.join(WRITERS)}")
    return WRITERS[suffix]


def _png(words: dict[str, Any]) -> bytes:
    import vl_convert

    return bytes(vl_convert.vegalite_to_png(words, vl_version=_version(), scale=PIXELS))


def _svg(words: dict[str, Any]) -> bytes:
    import vl_convert

    return str(vl_convert.vegalite_to_svg(words, vl_version=_version())).encode()


def _pdf(words: dict[str, Any]) -> bytes:
    import vl_convert

    return bytes(vl_convert.vegalite_to_pdf(words, vl_version=_version()))


def _html(words: dict[str, Any]) -> bytes:
    """A page that holds the drawing program, and the chart as data in which no text can end the element."""
    import vl_convert

    bundle: Any = vl_convert.javascript_bundle  # its type asks for a snippet, which has a default
    program = bundle(vl_version=_version()).replace("</script", "<\\/script")
    specification = json.dumps(words).replace("<", "\\u003c")
    return PAGE.format(program=program, specification=specification, paper=words["config"]["background"]).encode()


def _version() -> str:
    """The Vega-Lite that altair speaks, as vl-convert names it."""
    import altair as alt

    return ".".join(alt.SCHEMA_VERSION.split(".")[:2])


WRITERS: dict[str, Callable[[dict[str, Any]], bytes]] = {".png": _png, ".svg": _svg, ".pdf": _pdf, ".html": _html}
