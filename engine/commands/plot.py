"""``mask-impact plot``: a results file or a dataset's prompt as a figure."""

import argparse

from engine.commands.arguments import Parser
from engine.files import show

CHARTS = """charts:
  map      layer x token, of one variant (the default)
  heads    layer x head, of one --token, or the mean over the tokens
  tokens   the prompt as text, each token in the colour of its strongest layer, or of one --layer
  profile  over the layers: the --top tokens, or of one --token every kind of variant
  top      the --top strongest cells, of one --layer if given; --variant Head takes those of all heads

examples:
  mask-impact plot results.parquet --output map.png
  mask-impact plot results.parquet --output heads.svg --chart heads --token 1 --theme dark
  mask-impact plot results.parquet --output small.pdf --scale log --hide-first
  mask-impact plot effects.parquet --output answer.html --metric kl
  mask-impact plot impacts --prompt-id 17 --output prompt17.png
"""
OPTIONS = (
    *("chart", "metric", "variant", "token", "layer", "top", "hide_first", "hide_special", "scale", "theme"),
    *("width", "title", "prompt_id", "query"),
)


def build_parser() -> Parser:
    """The arguments of ``plot``."""
    parser = Parser(
        prog="mask-impact plot",
        description="Draw what was measured of one prompt.",
        epilog=CHARTS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "results", metavar="RESULTS", help="results file (.csv, .parquet, .jsonl) or a dataset's folder"
    )
    parser.add_argument("--output", metavar="FIGURE", required=True, help="file that ends in .png, .svg, .pdf or .html")
    parser.add_argument("--chart", metavar="C", default="map", help="map, heads, tokens, profile or top (default: map)")
    parser.add_argument(
        "--metric", metavar="M", help="cosine (default) or l2; of effects change (default), kl, ...; or a column's name"
    )
    parser.add_argument("--variant", metavar="V", help="Full (default), Attn, Head_3, ...; of heads, Head or Result")
    parser.add_argument("--prompt-id", metavar="ID", help="which prompt of a set")
    parser.add_argument("--query", metavar="POSITION", type=int, help="where it is read (default: the last there is)")
    _add_looks(parser)
    return parser


def _add_looks(parser: Parser) -> None:
    parser.add_argument("--token", metavar="POSITION", type=int, help="one hidden token, of heads and profile")
    parser.add_argument("--layer", metavar="N", type=int, help="one layer, of tokens and top")
    parser.add_argument("--top", metavar="N", type=int, help="how many, of profile and top")
    parser.add_argument("--hide-first", action="store_true", help="leave out position 0, often an attention sink")
    parser.add_argument("--hide-special", action="store_true", help="leave out special tokens")
    parser.add_argument("--scale", metavar="S", default="linear", help="linear (default), or log for small effects")
    parser.add_argument("--theme", metavar="T", default="light", help="light (default) or dark")
    parser.add_argument("--width", metavar="PIXELS", type=int, help="of the drawing without its labels")
    parser.add_argument("--title", metavar="TEXT", help="instead of the chart's own title")


def execute(arguments: argparse.Namespace) -> int:
    """Write the figure and return 0. Raises ``ResultsError`` and ``SelectionError`` as ``engine.plot`` does."""
    from engine.figures.charts import plot, require_charts
    from engine.figures.saving import check_figure, save_figure

    check_figure(arguments.output)
    require_charts()
    save_figure(plot(arguments.results, **{name: getattr(arguments, name) for name in OPTIONS}), arguments.output)
    show(f"{arguments.chart} of {arguments.results} -> {arguments.output}")
    return 0
