"""Figures show the numbers of the table, open as files of their kind, and do no harm with any text."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest

import engine
from benchmarks import figures_of_facts
from engine.commands import main
from engine.errors import ResultsError, SelectionError
from engine.experiment import AttentionMasker
from engine.figures import charts
from engine.figures.grids import EFFECT, grid_of
from engine.figures.labels import case_names
from engine.figures.saving import save_figure
from engine.figures.scales import NO_VALUE, THEMES, ZERO, scale_of
from engine.figures.views import CHARTS
from engine.tables.results import write_table
from engine.tables.table import build_table, variant_names

EIFFEL = "The Eiffel Tower is in"
HOSTILE = ["<s>", "</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", " a&b\n", '"]};alert(1)//', "é"]
MAGIC = {".png": b"\x89PNG", ".svg": b"<svg", ".pdf": b"%PDF", ".html": b"<!DOCTYPE html>"}
WORDS = {"cut": "window:2", "hidden_from": "query", "read": "output"}


@pytest.fixture(scope="module")
def masker():
    return AttentionMasker.from_pretrained(device="cpu")


@pytest.fixture(scope="module")
def impacts(masker):
    return masker.run(EIFFEL)


@pytest.fixture(scope="module")
def effects(masker):
    return masker.run(EIFFEL, **WORDS)


def random_table(pieces=HOSTILE, *, layers=3, heads=2, undefined=0.0):
    numbers = np.random.default_rng(0)
    distances = np.exp(numbers.normal(-4, 3, (layers, len(pieces), 2 + heads, 2))).astype(np.float32)
    distances[numbers.random(distances.shape) < undefined] = np.nan
    axes = {"layers": range(layers), "positions": range(len(pieces))}
    return build_table(distances, **axes, pieces=pieces, variants=variant_names(heads))


def records(chart):
    """The rows of data behind a chart."""
    words = chart.to_dict()
    return words["datasets"][words["data"]["name"]]


def values(chart):
    return np.array([np.nan if row["value"] is None else row["value"] for row in records(chart)], np.float32)


def titles(chart):
    words = chart.to_dict()["title"]
    return " | ".join([words["text"], *words["subtitle"]])


@pytest.mark.parametrize("variant", ["Full", "Attn", "Head_3"])
@pytest.mark.parametrize("metric", ["cosine", "l2_distance"])
def test_a_map_holds_the_numbers_of_the_table(impacts, variant, metric):
    name = {"cosine": "cosine_distance"}.get(metric, metric)
    expected = impacts.filter(pl.col("variant") == variant)[name].to_numpy()
    np.testing.assert_array_equal(values(engine.plot(impacts, variant=variant, metric=metric)), expected)


def test_a_head_grid_shows_one_token_or_the_mean(impacts):
    heads = impacts.filter(pl.col("variant").cast(pl.String).str.starts_with("Head"))
    one = heads.filter(pl.col("token_position") == 1)["cosine_distance"].to_numpy()
    np.testing.assert_array_equal(values(engine.plot(impacts, "heads", token=1)), one)
    mean = heads.group_by("layer", "variant").agg(pl.col("cosine_distance").mean()).sort("layer", "variant")
    np.testing.assert_allclose(values(engine.plot(impacts, "heads")), mean["cosine_distance"].to_numpy(), rtol=1e-6)


def test_a_strip_shows_every_token_in_its_strongest_layer(impacts):
    full = impacts.filter(pl.col("variant") == "Full")
    most = full.group_by("token_position").agg(pl.col("l2_distance").max()).sort("token_position")
    chart = engine.plot(impacts, "tokens", metric="l2")
    np.testing.assert_array_equal(values(chart), most["l2_distance"].to_numpy())
    assert [row["text"] for row in records(chart)] == ["The", "Eiffel", "Tower", "is", "in"]
    layer = full.filter(pl.col("layer") == 2)["l2_distance"].to_numpy()
    np.testing.assert_array_equal(values(engine.plot(impacts, "tokens", metric="l2", layer=2)), layer)


def test_a_profile_has_a_line_for_each_token_or_each_kind(impacts):
    rows = records(engine.plot(impacts, "profile", top=2, hide_first=True))
    assert list(dict.fromkeys(row["line"] for row in rows)) == ["1 Eiffel", "2 Tower", "mean of all"]
    eiffel = impacts.filter(pl.col("variant") == "Full", pl.col("token_position") == 1)["cosine_distance"]
    found = [row["value"] for row in rows if row["line"] == "1 Eiffel"]
    np.testing.assert_array_equal(np.array(found, np.float32), eiffel.to_numpy())
    kinds = dict.fromkeys(row["line"] for row in records(engine.plot(impacts, "profile", token=1)))
    assert list(kinds) == ["Full", "Attn", "mean Head"]


def test_the_list_is_that_of_the_strongest_cells(impacts):
    heads = impacts.filter(pl.col("variant").cast(pl.String).str.starts_with("Head"))
    expected = heads.sort("cosine_distance", descending=True).head(4)
    chart = engine.plot(impacts, "top", variant="Head", top=4)
    np.testing.assert_array_equal(values(chart), expected["cosine_distance"].to_numpy())
    head, token = pl.col("variant").cast(pl.String).str.replace("_", " "), pl.col("token_masked").str.strip_chars()
    labels = expected.select("layer", head, "token_position", token)
    names = ["layer {}, {}, {} {}".format(*row) for row in labels.iter_rows()]
    assert [row["cell"] for row in records(chart)] == names


def test_effects_are_drawn_with_two_signs_around_zero(effects):
    chart = engine.plot(effects)
    np.testing.assert_array_equal(values(chart), effects["answer_logprob_change"].to_numpy())
    scale = chart.to_dict()["layer"][0]["encoding"]["color"]["scale"]
    assert scale["domain"][0] == -scale["domain"][1]
    np.testing.assert_array_equal(values(engine.plot(effects, metric="kl")), effects["kl_divergence"].to_numpy())
    assert records(engine.plot(effects, "top", top=1))[0]["cell"].endswith("1 Eiffel")


@pytest.mark.parametrize("chart", CHARTS)
@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("suffix", MAGIC)
def test_every_chart_becomes_every_kind_of_file(tmp_path, chart, theme, suffix):
    table = random_table(undefined=0.1)
    scale = {} if chart == "top" else {"scale": "log"}
    save_figure(engine.plot(table, chart, theme=theme, **scale), tmp_path / f"figure{suffix}")
    assert (tmp_path / f"figure{suffix}").read_bytes().startswith(MAGIC[suffix])


class Elements(HTMLParser):
    """What a browser finds in a page: names of elements and their attributes."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


@pytest.mark.parametrize("chart", CHARTS)
def test_hostile_text_is_only_text(tmp_path, chart):
    table = random_table()
    figure = engine.plot(table, chart, title=HOSTILE[1], provenance={"prompt": HOSTILE[2], "description": HOSTILE[1]})
    save_figure(figure, tmp_path / "page.html")
    save_figure(figure, tmp_path / "figure.svg")
    page = Elements()
    page.feed((tmp_path / "page.html").read_text(encoding="utf-8"))
    tags = [tag for tag, _ in page.found]
    assert tags.count("script") == 3
    assert "img" not in tags
    assert not any({"src", "href", "onerror"} & set(attributes) for _, attributes in page.found)
    assert "connect-src" not in str(page.found)  # what is not allowed by name falls under default-src
    assert "default-src 'none'" in str(page.found)
    drawn = ElementTree.parse(tmp_path / "figure.svg").iter()
    kinds = {element.tag.rpartition("}")[2] for element in drawn}
    assert not kinds & {"script", "img", "image", "foreignObject", "a"}


def test_a_logarithmic_scale_sets_zeros_and_nulls_apart():
    table = random_table(layers=1)
    numbers = [1e-9, 0.0, None, 1e-3, 0.5, 1.0]
    full = pl.col("variant").cast(pl.String) == "Full"
    table = table.filter(full).with_columns(cosine_distance=pl.Series(numbers, dtype=pl.Float32))
    chart = engine.plot(table, scale="log")
    assert [row["state"] for row in records(chart)] == [None, ZERO, NO_VALUE, None, None, None]
    assert "values below 1.0e-06 have the colour of 1.0e-06" in titles(chart)
    legend = chart.to_dict()["layer"][1]["encoding"]["color"]["scale"]["domain"]
    assert legend == [ZERO, NO_VALUE]
    assert [row["state"] for row in records(engine.plot(table))] == [None, None, NO_VALUE, None, None, None]


def luminance(colour):
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


@pytest.mark.parametrize("name", THEMES)
def test_colours_can_be_told_apart_without_hues(name):
    """Lightness alone orders the values of one sign, and text can be read on paper."""
    theme = THEMES[name]
    steps = np.diff([luminance(colour) for colour in theme.one_sign])
    assert (steps < 0).all() if name == "light" else (steps > 0).all()
    ends = sorted([luminance(theme.ink), luminance(theme.paper)])
    assert (ends[1] + 0.05) / (ends[0] + 0.05) > 7


def test_a_scale_of_zeros_alone_is_a_scale():
    for kind in ("linear", "log"):
        scale = scale_of(np.zeros((2, 2), np.float32), kind, THEMES["light"])
        assert scale.low < scale.high


def test_sinks_and_special_tokens_can_be_left_out(impacts):
    assert [row["x"] for row in records(engine.plot(impacts, hide_first=True))][:2] == ["1 Eiffel", "2 Tower"]
    table = random_table()
    chart = engine.plot(table, hide_special=True)
    assert len(values(chart)) == 3 * (len(HOSTILE) - 1)
    assert "1 token left out" in titles(chart)
    marked = table.with_columns(is_special=pl.col("token_position") > 1)
    assert len(values(engine.plot(marked, hide_special=True))) == 3 * 2


def test_long_prompts_stay_within_the_page():
    table = random_table([f" w{n}" for n in range(2600)], layers=2, heads=1)
    chart = engine.plot(table)
    words = chart.to_dict()
    assert words["width"] <= 1200
    assert len(words["layer"][0]["encoding"]["x"]["axis"]["values"]) < 90
    assert "the strongest of 3 tokens" in titles(chart)
    full = table.filter(pl.col("variant").cast(pl.String) == "Full", pl.col("layer") == 0)["cosine_distance"]
    assert values(chart)[0] == full[:3].max()


def test_groups_and_query_positions(masker):
    table = masker.run(EIFFEL, mask={"subject": [1, 2], "rest": [0, 3]}, query=[3, 4])
    grid = grid_of(table)
    assert [case.positions for case in grid.cases] == [(0, 3), (1, 2)]
    assert case_names(grid.cases) == ["0+3 rest", "1–2 subject"]
    assert (grid.query, grid.queries) == (4, (3, 4))
    expected = table.filter(pl.col("query_position") == 3, pl.col("variant") == "Full").sort("token_position", "layer")
    found = grid_of(table, query=3).values["l2_distance"][..., 0]
    np.testing.assert_array_equal(found.T.ravel(), expected["l2_distance"].to_numpy())
    assert "read at position 3" in titles(engine.plot(table, query=3))
    with pytest.raises(SelectionError, match="query position 2 is not in the table; there are: 3, 4"):
        engine.plot(table, query=2)


def test_all_layers_cut_together(masker):
    grid = grid_of(masker.run(EIFFEL, cut="all", hidden_from="others", read="output"))
    assert grid.layers == (None,)
    assert grid.variants == (EFFECT,)
    assert {row["y"] for row in records(engine.plot(grid))} == {"all"}


def test_a_dataset_shows_one_prompt(masker, tmp_path):
    masker.run_dataset([EIFFEL, "The capital of France is"], tmp_path / "set")
    chart = engine.plot(tmp_path / "set", prompt_id=1)
    expected = masker.run("The capital of France is").filter(pl.col("variant") == "Full")["cosine_distance"]
    np.testing.assert_allclose(values(chart), expected.to_numpy(), rtol=1e-3, atol=1e-7)
    assert "prompt 1 · “The capital of France is”" in titles(chart)
    with pytest.raises(SelectionError, match=r"choose one of 2 with --prompt-id: 0, 1"):
        engine.plot(tmp_path / "set")


def test_rows_of_several_runs_are_not_mixed(impacts):
    with pytest.raises(ResultsError, match="several rows stand for the same layer, token and variant"):
        grid_of(pl.concat([impacts, impacts]))


def test_the_order_of_rows_does_not_matter(impacts):
    shuffled = grid_of(impacts.sample(fraction=1.0, shuffle=True, seed=1))
    straight = grid_of(impacts)
    for name, places in straight.heads.items():
        found = [shuffled.heads[name][head] for head in places]
        first, second = straight.values["l2_distance"], shuffled.values["l2_distance"]
        np.testing.assert_array_equal(first[..., list(places.values())], second[..., found])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--output", "a.gif"], "no suffix of a figure"),
        (["--output", "nowhere/a.png"], "its folder does not exist"),
        (["--output", "a.png", "--variant", "Head_9"], "choose one of: Full, Attn, Head_0, Head_1, Head_2, Head_3"),
        (["--output", "a.png", "--metric", "kl"], "choose one of: cosine_distance, l2_distance"),
        (["--output", "a.png", "--chart", "pie"], "choose map, heads, tokens, profile, top"),
        (["--output", "a.png", "--scale", "root"], "choose linear, log"),
        (["--output", "a.png", "--theme", "pink"], "choose light, dark"),
        (["--output", "a.png", "--chart", "heads", "--token", "9"], "token 9 is not shown"),
        (["--output", "a.png", "--chart", "top", "--layer", "7"], "layer 7 is not in the table; there are: 0, 1, 2, 3"),
        (["--output", "a.png", "--top", "3"], "--top has no effect on map"),
        (["--output", "a.png", "--width", "3"], "give 100 to 10000"),
        (["--output", "a.png", "--prompt-id", "3"], "leave --prompt-id out"),
        (["--output", "a.png", "--query", "3"], "leave --query out"),
    ],
)
def test_mistakes_are_answered_in_one_line(impacts, tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    write_table(impacts, "table.parquet")
    assert main(["plot", "table.parquet", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not Path("a.png").exists()


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_the_command_draws_from_every_kind_of_file(impacts, tmp_path, capsys, suffix):
    write_table(impacts, tmp_path / f"table{suffix}")
    target = tmp_path / "figure.svg"
    assert main(["plot", str(tmp_path / f"table{suffix}"), "--output", str(target), "--hide-first"]) == 0
    assert target.read_text(encoding="utf-8").count("Eiffel") >= 1
    assert capsys.readouterr().out.startswith("map of ")


def test_what_is_missing_is_named(impacts, monkeypatch):
    monkeypatch.setattr(charts, "NEEDED", ("altair", "no_such_package"))
    with pytest.raises(ResultsError, match=re.escape("pip install 'mask-impact[figures]'")):
        engine.plot(impacts)


def test_measuring_and_reading_do_not_load_the_charting_library():
    code = "import engine, engine.figures.grids, engine.figures.charts, sys; print('altair' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_the_figures_of_the_readme_are_those_of_the_program(tmp_path):
    assert figures_of_facts.main(["--output", str(tmp_path)]) == 0
    committed = {path.name for path in figures_of_facts.FOLDER.glob("*.svg")}
    assert {path.name for path in tmp_path.iterdir()} == committed
    readme = (Path(engine.__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    assert committed >= set(re.findall(r"results/figures/([\w-]+\.svg)", readme))


def test_charts_show_in_notebooks(impacts):
    bundle = engine.plot(impacts)._repr_mimebundle_()
    assert bundle
