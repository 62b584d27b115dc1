"""``plot``: the results of one prompt as a chart, an object of altair that shows in a notebook and can be changed.

Altair, because one definition of a chart becomes a notebook's object, PNG, SVG, PDF and an HTML file that needs no
network, all without a display or a browser at hand (vl-convert). Matplotlib has no page to hover over, and plotly's
needs 5 MB and, for files, a browser.
"""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from engine.errors import ResultsError
from engine.figures.grids import Grid, grid_of
from engine.figures.scales import Theme
from engine.figures.sources import PromptId, Results
from engine.figures.views import Choices, View

if TYPE_CHECKING:
    import altair as alt

NEEDED = ("altair", "vl_convert")
MISSING = "figures need altair and vl-convert, which are not installed; pip install 'mask-impact[figures]'"


def plot(
    results: Results | Grid,
    chart: str = "map",
    *,
    prompt_id: PromptId | None = None,
    query: int | None = None,
    provenance: Mapping[str, Any] | None = None,
    **choices: Any,
) -> "alt.LayerChart":
    """A chart of one prompt's results: a frame, a results file, the folder of a dataset, or a grid.

    ``chart``: ``map`` (layer x token), ``heads`` (layer x head, of ``token`` or the mean of all), ``tokens`` (the
    prompt, coloured; ``layer``), ``profile`` (over the layers; of the ``top`` tokens, or of ``token`` by kind), ``top``
    (the ``top`` strongest cells; ``layer``). ``prompt_id`` and ``query`` choose as in ``grid_of``.

    Of the other choices, ``metric`` is a column or ``cosine``, ``l2``, ``kl``, ``change``, ``mass``, ``relative``;
    ``variant`` one of the table, ``Full`` by default. ``scale="log"`` (default ``"linear"``) shows small effects and
    marks what is exactly 0. ``hide_first`` and ``hide_special`` leave attention sinks out. ``theme`` is ``"light"`` or
    ``"dark"``, ``width`` is in pixels, ``title`` replaces the chart's own.

    Raises ``SelectionError`` for what is not there to be shown, and ``ResultsError`` as ``grid_of`` does or where
    altair is not installed.
    """
    chosen = Choices(chart=chart, **choices)
    require_charts()
    grid = results if isinstance(results, Grid) else grid_of(results, prompt_id, query, provenance=provenance)
    return draw(View(grid, chosen))


def draw(view: View) -> "alt.LayerChart":
    """The chart of a view, in the colours of its theme."""
    from engine.figures import lists, maps

    makers: dict[str, Callable[[View], alt.LayerChart]] = {
        "map": maps.token_map,
        "heads": maps.head_map,
        "tokens": lists.token_strip,
        "profile": lists.profiles,
        "top": lists.strongest,
    }
    themed: alt.LayerChart = makers[view.choices.chart](view).configure(**_dress(view.theme))
    return themed


def require_charts() -> None:
    """Raise ``ResultsError`` where what charts need is not installed."""
    if not all(map(find_spec, NEEDED)):
        raise ResultsError(MISSING)


def _dress(theme: Theme) -> dict[str, Any]:
    """Colours and sizes of all that is not data."""
    texts = {"labelColor": theme.ink, "titleColor": theme.ink, "labelFontSize": 11, "titleFontWeight": "normal"}
    title = {"color": theme.ink, "subtitleColor": theme.ink, "anchor": "start", "fontSize": 14, "offset": 12}
    lines = {"gridColor": theme.faint, "domainColor": theme.faint, "tickColor": theme.faint}
    return {
        "background": theme.paper,
        "padding": 12,
        "view": {"stroke": None, "fill": theme.paper},
        "axis": texts | lines,
        "axisBand": {"grid": False, "domain": False},
        "legend": {"labelColor": theme.ink, "titleColor": theme.ink},
        "title": title,
    }
