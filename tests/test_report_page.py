"""The page of results in a real browser: what is on it, what clicks and keys change, and what it never does."""

import csv
import io
import json
import shutil
import time

import numpy as np
import polars as pl
import pytest

from engine import AttentionMasker
from engine.commands import main
from engine.tables.results import write_table
from engine.tables.table import build_table, variant_names

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
PROMPT = "The Eiffel Tower is in"
HOSTILE = [
    "<script>window.hit=1</script>",
    "</script><script>window.hit=2</script>",
    '"><img src=x onerror="window.hit=3">',
    "<!--<script>",
    "' onclick=window.hit=4 '",
    "\u202eright to left\u2066",
    "=1+1",
    "-",
    'two\nlines, and "quotes"',
    "\u2028\u2029\x00\x1b[31m",
    "& &lt; $policy ${1} {{x}}",
    "x" * 10_000,
    "",
    "�日本語🙂",
]


@pytest.fixture(scope="module")
def browser():
    if BROWSER is None:
        pytest.skip("no Chromium is installed here; .ci/run installs it")
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install -e '.[test]' brings playwright")
    with sync_api.sync_playwright() as play:
        running = play.chromium.launch(executable_path=BROWSER, args=list(FLAGS))
        yield running
        running.close()


@pytest.fixture
def opened(browser):
    """Opens a file and watches: afterwards nothing was said on the console and nothing was asked for but the file."""
    said, asked, contexts = [], [], []

    def open_page(path, **settings):
        context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True, **settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(5_000)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []
    assert all(url.startswith(("file://", "blob:")) for url in asked), asked
    assert sum(url.startswith("file://") for url in asked) == len(contexts)


@pytest.fixture(scope="module")
def masker():
    return AttentionMasker.from_pretrained(device="cpu")


@pytest.fixture(scope="module")
def table(masker):
    return masker.run(PROMPT)


@pytest.fixture
def report(tmp_path):
    """Writes a table as a results file, and its page by the command; the path of the page."""

    def write(table, *options, name="results.parquet", provenance=None):
        write_table(table, tmp_path / name, provenance=provenance)
        assert main(["report", str(tmp_path / name), "--output", str(tmp_path / "report.html"), *options]) == 0
        return tmp_path / "report.html"

    return write


def details(page):
    return page.inner_text("#details")


def strongest(table, variant, metric):
    rows = table.filter(pl.col("variant").cast(pl.String) == variant)
    return rows.sort(metric, descending=True, nulls_last=True).row(0, named=True)


def downloaded(page):
    with page.expect_download() as waiting:
        page.click("#download")
    return waiting.value.path().read_bytes()


def shown_rows(page):
    return page.eval_on_selector_all("#table tbody tr", "rows => rows.map(r => [...r.cells].map(c => c.textContent))")


def test_everything_is_there(opened, report, table):
    page = opened(report(table, provenance={"description": "a model", "layers": 4, "heads": 4, "prompt": PROMPT}))
    tokens = page.eval_on_selector_all("#strip button", "all => all.map(each => each.textContent)")
    assert tokens == ["The", " Eiffel", " Tower", " is", " in"]
    assert page.inner_text("#subtitle") == "a model, 4 layers × 4 heads"
    assert PROMPT in page.inner_text("#origin")
    assert page.is_visible("#map")
    assert page.is_visible("#heads")
    options = page.eval_on_selector_all("#variant option", "all => all.map(each => each.textContent)")
    assert options == variant_names(4)
    assert page.is_hidden("#prompt-choice")
    assert page.inner_text("#count") == "20 of 20 rows"


def test_the_page_opens_at_the_strongest_cell(opened, report, table):
    best = strongest(table, "Full", "cosine_distance")
    told = details(opened(report(table)))
    assert told.startswith(f"{best['token_position']} “{best['token_masked']}”, layer {best['layer']}, Full")
    assert f"cosine distance {best['cosine_distance']:.4g}" in told
    assert "rank 1 of 20" in told


def test_a_token_a_cell_and_a_head_are_chosen_by_click(opened, report, table):
    page = opened(report(table))
    before = page.eval_on_selector("#heads", "canvas => canvas.toDataURL()")
    page.click("#strip button:nth-of-type(3)")
    assert "2 “ Tower”" in details(page)
    assert page.get_attribute("#strip button:nth-of-type(3)", "aria-pressed") == "true"
    assert page.inner_text("#heads-title") == "Heads, when 2 “ Tower” is hidden"
    assert page.eval_on_selector("#heads", "canvas => canvas.toDataURL()") != before
    where = page.evaluate("() => [44 + 3.5 * map.cellWidth, 1.5 * map.cellHeight]")
    page.click("#map", position={"x": where[0], "y": where[1]})
    assert details(page).startswith("3 “ is”, layer 1, Full")
    where = page.evaluate("() => [44 + 2.5 * heads.cellWidth, 3.5 * heads.cellHeight]")
    page.click("#heads", position={"x": where[0], "y": where[1]})
    assert details(page).startswith("3 “ is”, layer 3, Head_2")
    assert page.eval_on_selector("#variant", "each => each.selectedOptions[0].textContent") == "Head_2"
    value = table.filter(layer=3, token_position=3).filter(pl.col("variant").cast(pl.String) == "Head_2")
    assert f"L2 distance {value['l2_distance'][0]:.4g}" in details(page)


def test_the_choices_change_what_is_drawn(opened, report, table):
    page = opened(report(table))
    pictures = [page.eval_on_selector("#map", "canvas => canvas.toDataURL()")]
    for choice in (
        lambda: page.select_option("#metric", label="L2 distance"),
        lambda: page.select_option("#variant", label="Head_3"),
        lambda: page.select_option("#scale", label="logarithmic"),
        lambda: page.check("#hide-first"),
        lambda: page.select_option("#theme", label="dark"),
    ):
        choice()
        pictures.append(page.eval_on_selector("#map", "canvas => canvas.toDataURL()"))
    assert len(set(pictures)) == len(pictures)
    assert "logarithmic" in page.inner_text("#map-legend")
    assert page.evaluate("state.visibleCases") == [1, 2, 3, 4]
    assert not details(page).startswith("0 ")
    assert details(page).endswith("of 16 by L2 distance")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    page.click("#strip button:first-of-type")
    assert "0 “The”" not in details(page)


def test_dark_follows_the_system(opened, report, table):
    path = report(table)
    colours = [
        opened(path, color_scheme=scheme).evaluate("getComputedStyle(document.body).backgroundColor")
        for scheme in ("light", "dark")
    ]
    assert colours[0] == "rgb(255, 255, 255)" != colours[1]


def test_keys_do_what_clicks_do(opened, report, table):
    page = opened(report(table))
    page.click("#strip button:first-of-type")
    page.keyboard.press("ArrowRight")
    assert details(page).startswith("1 “ Eiffel”")
    page.focus("#map")
    for key in ("PageUp", "Home", "ArrowDown", "ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
    assert details(page).startswith("2 “ Tower”, layer 1, Full")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    assert details(page).startswith("2 “ Tower”, layer 1, Head_0")
    for key in ("ArrowUp",) * 9:
        page.keyboard.press(key)
    assert ", layer 0, " in details(page)
    assert page.evaluate("document.querySelectorAll('#strip button[tabindex=\"0\"]').length") == 1


def test_a_hover_tells_the_cell(opened, report, table):
    page = opened(report(table))
    where = page.evaluate("() => [44 + 4.5 * map.cellWidth, 2.5 * map.cellHeight]")
    page.hover("#map", position={"x": where[0], "y": where[1]})
    assert page.inner_text("#tip").startswith("4 “ in”, layer 2, Full")
    page.hover("#title")
    assert page.is_hidden("#tip")


def test_the_table_is_sorted_and_filtered(opened, report, table):
    page = opened(report(table))
    expected = table.filter(pl.col("variant").cast(pl.String) == "Full").sort("cosine_distance", descending=True)
    assert [int(row[0]) for row in shown_rows(page)] == expected["layer"].to_list()
    page.click("#table th button[data-column='L2 distance']")
    values = [float(row[5]) for row in shown_rows(page)]
    assert values == sorted(values, reverse=True)
    page.click("#table th button[data-column='L2 distance']")
    assert [float(row[5]) for row in shown_rows(page)] == sorted(values)
    assert page.get_attribute("#table th:nth-child(6)", "aria-sort") == "ascending"
    page.check("#all-variants")
    assert page.inner_text("#count") == f"{len(table)} of {len(table)} rows"
    page.fill("#find", "eif")
    page.select_option("#only-layer", label="2")
    assert {(row[0], row[2]) for row in shown_rows(page)} == {("2", "·Eiffel")}
    assert len(shown_rows(page)) == 6
    page.click("#table tbody tr:nth-child(2) button")
    assert details(page).startswith("1 “ Eiffel”, layer 2")


def test_the_download_is_the_table(opened, report, table):
    page = opened(report(table))
    found = pl.read_csv(
        io.BytesIO(downloaded(page)), schema_overrides={"l2_distance": pl.Float32, "cosine_distance": pl.Float32}
    )
    expected = table.with_columns(pl.col("variant").cast(pl.String))
    assert found.columns == expected.columns
    assert found.rows() == expected.rows()


def hostile_table():
    rng = np.random.default_rng(0)
    distances = rng.random((2, len(HOSTILE), 4, 2), dtype=np.float32)
    distances[1, 3] = np.nan
    return build_table(
        distances, layers=range(2), positions=range(len(HOSTILE)), pieces=HOSTILE, variants=variant_names(2)
    )


def test_a_hostile_prompt_is_shown_as_text(opened, report):
    told = {
        "description": HOSTILE[1],
        "prompt": "".join(HOSTILE),
        "model": HOSTILE[2],
        "question": {"mask": HOSTILE[0]},
    }
    path = report(hostile_table(), provenance=told)
    assert path.read_text(encoding="ascii").count("<script") == 2
    page = opened(path)
    assert page.evaluate("window.hit") is None
    for number in range(len(HOSTILE)):
        page.locator("#strip button").nth(number).click()
    assert page.evaluate("window.hit") is None
    assert page.locator("#strip button").nth(0).text_content() == HOSTILE[0]
    assert page.locator("#strip button").nth(5).text_content() == "<U+202E>right to left<U+2066>"
    assert page.locator("main img, main script").count() == 0
    assert page.inner_text("#subtitle") == HOSTILE[1]
    found = list(csv.DictReader(io.StringIO(downloaded(page).decode(), newline="")))
    texts = [row["token_masked"] for row in found if (row["layer"], row["variant"]) == ("0", "Full")]
    assert texts == [f"'{text}" if text.startswith(("=", "-")) else text for text in HOSTILE]
    assert [row["token_position"] for row in found if row["l2_distance"] == ""] == ["3"] * 4


def test_lone_surrogates_are_codes():
    from engine.pages.packing import script_json

    text = script_json({"text": "a\ud800</script>\u2028"})
    assert text.isascii()
    assert "<" not in text
    assert json.loads(text) == {"text": "a\ud800</script>\u2028"}


def test_effects_show_the_answer(opened, report, masker):
    table = masker.run(PROMPT, read="output", cut="window:1", query=[3, 4])
    page = opened(report(table))
    assert "“ Paris”" in page.inner_text("#answer")
    assert page.is_hidden("#heads-section")
    assert page.is_hidden("#variant-choice")
    worst = table.filter(query_position=4).sort("answer_logprob_change").row(0, named=True)
    assert shown_rows(page)[0][:3] == [str(worst["layer"]), str(worst["token_position"]), "·Eiffel"]
    page.select_option("#query", index=0)
    assert page.locator("#strip button").count() == 4
    found = pl.read_csv(io.BytesIO(downloaded(page)))
    assert found["query_position"].unique().to_list() == [3]
    assert found["top_token_masked"].to_list() == table.filter(query_position=3)["top_token_masked"].to_list()


def test_groups_are_cases_of_their_own(opened, report, masker):
    page = opened(report(masker.run(PROMPT, mask={"subject": [1, 2], "rest": [0, 3]})))
    assert page.locator("#strip button").count() == 2
    page.locator("#strip button").nth(1).click()
    assert details(page).startswith("1+2 “subject”")
    found = pl.read_csv(io.BytesIO(downloaded(page)), schema_overrides={"masked_positions": pl.String})
    assert set(found["masked_positions"]) == {"1+2", "0+3"}


@pytest.fixture(scope="module")
def dataset(masker, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets") / "impacts"
    prompts = {"a": PROMPT, "b<i>": "The Great Wall is in", "c": "Big Ben stands in the city of"}
    masker.run_dataset(prompts, folder)
    return folder


def test_a_dataset_shows_its_mean_and_its_prompts(opened, dataset, tmp_path):
    assert main(["report", str(dataset), "--output", str(tmp_path / "set.html"), "--prompts", "2"]) == 0
    page = opened(tmp_path / "set.html")
    names = page.eval_on_selector_all("#prompt option", "all => all.map(each => each.textContent)")
    assert names == ["Mean of 3 prompts", f"a: {PROMPT}", "b<i>: The Great Wall is in"]
    assert page.inner_text("#note") == "This page holds 2 of 3 prompts, and the mean of all."
    rows = pl.read_parquet(dataset / "impacts" / "*.parquet").with_columns(pl.col("variant").cast(pl.String))
    whole = rows.group_by("layer", "variant").agg(pl.col("l2_distance").cast(pl.Float64).mean())
    found = pl.read_csv(io.BytesIO(downloaded(page))).filter(token_masked="all tokens")
    both = found.join(whole, on=["layer", "variant"])
    assert len(both) == 4 * 6
    assert both["l2_distance"].to_list() == pytest.approx(both["l2_distance_right"].to_list(), rel=1e-6)
    ends = rows.filter(pl.col("token_position") == pl.col("token_position").max().over("prompt_id"))
    last = ends.filter(layer=1, variant="Full")["l2_distance"].mean()
    found = pl.read_csv(io.BytesIO(downloaded(page))).filter(token_masked="the query", layer=1, variant="Full")
    assert found["l2_distance"][0] == pytest.approx(last, rel=1e-6)
    page.select_option("#prompt", index=2)
    found = pl.read_csv(io.BytesIO(downloaded(page)))
    assert found["prompt_id"].unique().to_list() == ["b<i>"]
    assert found["token_masked"].to_list() == rows.filter(prompt_id="b<i>")["token_masked"].to_list()


def test_prompts_are_chosen_by_their_ids(dataset, tmp_path):
    from engine.figures.sources import source_of
    from engine.pages.page import page_data

    names = [each["id"] for each in page_data(source_of(dataset), prompt_ids=["c", "a"])["prompts"]]
    assert names == [None, "c", "a"]


def test_a_large_page_stays_within_its_room(dataset, monkeypatch):
    from engine.figures.sources import source_of
    from engine.pages import page

    monkeypatch.setattr(page, "MOST_BYTES", 2_000)
    data = page.page_data(source_of(dataset))
    assert len(data["prompts"]) == 2
    assert data["note"].startswith("This page holds 1 of 3 prompts")


def test_a_prompt_of_64_tokens_is_small_and_opens_fast(opened, report):
    rng = np.random.default_rng(0)
    distances = np.exp(rng.normal(-4, 1.5, (28, 64, 18, 2))).astype(np.float32)
    pieces = [f" token{number}" for number in range(64)]
    path = report(
        build_table(distances, layers=range(28), positions=range(64), pieces=pieces, variants=variant_names(16))
    )
    assert path.stat().st_size < 1_000_000
    started = time.perf_counter()
    page = opened(path)
    assert page.locator("#strip button").count() == 64
    assert time.perf_counter() - started < 5  # a second on an idle machine: python -m benchmarks.pages measures it


def test_the_policy_forbids_everything_else(report, table):
    text = report(table).read_text(encoding="ascii")
    policy = text.split('http-equiv="Content-Security-Policy" content="')[1].split('"')[0]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert "http" not in text.replace("http-equiv", "")
    assert not any(word in text for word in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval("))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["nothing.csv", "--output", "a.html"], "does not exist"),
        (["results.parquet", "--output", "a.pdf"], "no suffix of a page"),
        (["results.parquet", "--output", "no/a.html"], "its folder does not exist"),
        (["results.parquet", "--output", "a.html", "--prompt-ids", "x"], "there is no prompt 'x'"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(words, reason, table, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_table(table, "results.parquet")
    assert main(["report", *words]) == 2
    err = capsys.readouterr().err
    assert reason in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["results.parquet"]


def test_from_python(table, tmp_path):
    import engine

    size = engine.write_report(table, tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size == size
