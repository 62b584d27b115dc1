"""The analysis agrees with plain sums over plain rows, whatever the size of its batches, and reads well."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from engine.commands import main
from engine.errors import ResultsError
from engine.findings import cells, sums
from engine.findings.analysis import analyze
from engine.findings.cells import DISTANCES, KINDS
from engine.findings.quantiles import QUANTILES
from engine.findings.report import as_json, as_text
from engine.findings.terminal import number, width
from engine.tables.results import write_table
from engine.tables.table import build_table, variant_names

PIECES = ["<bos>", "The", " E", "iff", "el", " Tower\n", " שלום", "東京" * 12]


def impact_table(*, layers: int = 5, heads: int = 12, seed: int = 0, undefined: float = 0.1) -> pl.DataFrame:
    """A table of random distances with a share of undefined cells; position 0 is a sink."""
    numbers = np.random.default_rng(seed)
    distances = np.exp(numbers.normal(-2, 2, (layers, len(PIECES), 2 + heads, 2))).astype(np.float32)
    distances[:, 0] *= 100
    distances[numbers.random(distances.shape) < undefined] = np.nan
    axes = {"layers": range(layers), "positions": range(len(PIECES))}
    return build_table(distances, **axes, pieces=PIECES, variants=variant_names(heads))


def constant_table(value: float | None, **size: int) -> pl.DataFrame:
    constant = pl.lit(value, dtype=pl.Float32)
    return impact_table(**size).with_columns(constant.alias("l2_distance"), constant.alias("cosine_distance"))


@pytest.fixture
def tiny_batches(monkeypatch):
    monkeypatch.setattr(cells, "BATCH_ROWS", 37)
    monkeypatch.setattr(sums, "PENDING_ROWS", 50)


def kind_of(variant: str) -> str:
    return variant.partition("_")[0]


def ranked_by_hand(table: pl.DataFrame, distance: str, kind: str, label) -> list[tuple]:
    """(label, mean) of the defined cells, the greatest first; equal means in order of their labels."""
    groups: dict[tuple, list[float]] = {}
    for row in table.to_dicts():
        if kind_of(row["variant"]) == kind and row[distance] is not None:
            groups.setdefault(label(row), []).append(row[distance])
    means = {key: float(f"{np.mean(values):.9g}") for key, values in groups.items()}
    return sorted(means.items(), key=lambda item: (-item[1], item[0]))


LABELS = {
    "tokens": lambda row: (row["token_position"], row["token_masked"]),
    "layers": lambda row: (row["layer"],),
    "heads": lambda row: (row["layer"], int(row["variant"][5:])),
    "cells": lambda row: (row["layer"], row["token_position"], int(row["variant"][5:] or -1), row["token_masked"]),
}
RANKINGS = [(ranking, kind) for ranking in LABELS for kind in KINDS if ranking != "heads" or kind == "Head"]


@pytest.mark.usefixtures("tiny_batches")
@pytest.mark.parametrize(("ranking", "kind"), RANKINGS)
@pytest.mark.parametrize("distance", DISTANCES)
def test_rankings_agree_with_sums_by_hand(ranking, kind, distance):
    table = impact_table()
    frame = getattr(analyze(table.sample(fraction=1.0, shuffle=True, seed=1).lazy(), top=6), ranking)
    rows = frame.filter(kind=kind, distance=distance).to_dicts()
    expected = ranked_by_hand(table, distance, kind, LABELS[ranking])[:6]
    full = [row | {"variant": row.get("variant", "Head_0")} for row in rows]
    assert [LABELS[ranking](row) for row in full] == [label for label, _ in expected]
    assert [row.get("mean", row.get("value")) for row in rows] == pytest.approx([mean for _, mean in expected])
    assert [row["rank"] for row in rows] == list(range(1, len(expected) + 1))


@pytest.mark.usefixtures("tiny_batches")
@pytest.mark.parametrize("distance", DISTANCES)
def test_statistics_are_exact(distance):
    table = impact_table()
    statistics = analyze(table.lazy()).statistics.filter(distance=distance)
    assert statistics["variant"].to_list() == variant_names(12)
    for row in statistics.to_dicts():
        values = table.filter(pl.col("variant").cast(pl.String) == row["variant"])[distance].cast(pl.Float64)
        expected = {"mean": values.mean(), "std": values.std(), "min": values.min(), "max": values.max()}
        expected |= {name: values.quantile(level, interpolation="linear") for name, level in QUANTILES.items()}
        assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-8)
        assert (row["count"], row["null_count"]) == (values.count(), values.null_count())


def test_quantiles_of_negative_repeated_and_extreme_values():
    values = [-1e-7, -0.0, 0.0, 0.0, 1e-45, 1e-38, 0.5, 0.5, 0.5, 3e38, -2.5]
    table = impact_table(layers=11, undefined=0).filter(pl.col("variant").cast(pl.String) == "Attn", token_position=3)
    table = table.with_columns(pl.Series("l2_distance", values, dtype=pl.Float32))
    found = analyze(table.lazy()).statistics.filter(distance="l2_distance").to_dicts()[0]
    expected = pl.Series(values, dtype=pl.Float32).cast(pl.Float64)
    for name, level in QUANTILES.items():
        assert found[name] == pytest.approx(expected.quantile(level, interpolation="linear"), rel=1e-8)


@pytest.mark.usefixtures("tiny_batches")
def test_the_profile_is_the_mean_of_every_layer():
    table = impact_table()
    profile = analyze(table.lazy(), top=1).profile
    for kind in KINDS:
        expected = dict(ranked_by_hand(table, "l2_distance", kind, LABELS["layers"]))
        rows = profile.filter(kind=kind, distance="l2_distance")
        assert dict(rows.select("layer", "mean").iter_rows()) == pytest.approx({k: v for (k,), v in expected.items()})
        assert rows["layer"].to_list() == sorted(rows["layer"])


@pytest.mark.usefixtures("tiny_batches")
def test_equal_values_are_ordered_by_layer_position_and_head_number():
    table = constant_table(0.1, layers=3)
    found = analyze(table.sample(fraction=1.0, shuffle=True, seed=2).lazy(), top=20)
    heads = found.heads.filter(distance="l2_distance").select("layer", "variant").rows()
    cells = found.cells.filter(distance="l2_distance", kind="Head").select("layer", "token_position", "variant").rows()
    assert heads == [(layer, f"Head_{head}") for layer in range(3) for head in range(12)][:20]
    assert cells == [(0, position, f"Head_{head}") for position in range(8) for head in range(12)][:20]
    assert found.layers.filter(kind="Full", distance="l2_distance")["layer"].to_list() == [0, 1, 2]
    assert found.statistics["std"].to_list() == [0.0] * 28


def test_the_form_of_the_variant_column_and_of_the_numbers_does_not_matter():
    table = impact_table()
    wide = table.with_columns(pl.col("layer").cast(pl.Int64), pl.col("l2_distance").cast(pl.Float64))
    for form in (pl.String, pl.Categorical):
        other = wide.with_columns(pl.col("variant").cast(pl.String).cast(form))
        assert as_json(analyze(other.lazy())) == as_json(analyze(table.lazy()))


def test_prompts_are_told_apart():
    parts = [impact_table(seed=seed).with_columns(pl.lit(f"p{seed}").alias("prompt_id")) for seed in (0, 1)]
    found = analyze(pl.concat(parts).lazy(), top=3)
    best = found.tokens.filter(distance="l2_distance", kind="Full").head(2)
    assert set(best["prompt_id"]) == {"p0", "p1"}
    assert found.counts["prompts"] == 2
    assert found.counts["tokens"] == 2 * len(PIECES)
    assert "2 prompts" in as_text(found)
    alone = analyze(parts[0].lazy()).tokens.filter(distance="l2_distance", kind="Full")["mean"][0]
    assert alone in best["mean"].to_list()


def test_query_positions_are_counted_and_shown():
    parts = [impact_table(seed=query).with_columns(pl.lit(query).alias("query_position")) for query in (6, 7)]
    found = analyze(pl.concat(parts).lazy())
    assert found.counts["query_positions"] == 2
    assert "2 query positions" in as_text(found)
    assert set(found.cells["query_position"]) == {6, 7}


def test_the_first_position_can_be_left_out():
    table = impact_table()
    assert "Position 0 ranks first (L2, cosine)" in as_text(analyze(table.lazy()))
    without = analyze(table.lazy(), skip_first=True)
    rest = analyze(table.filter(pl.col("token_position") > 0).lazy())
    assert without.tokens.equals(rest.tokens)
    assert without.statistics.equals(rest.statistics)
    assert without.counts["skipped_rows"] == 5 * 14
    assert "Position 0 is left out" in as_text(without)
    assert "ranks first" not in as_text(without)


@pytest.mark.parametrize("columns", [["l2_distance"], ["l2_distance", "cosine_distance"]])
def test_undefined_cells_only(columns):
    table = impact_table().with_columns(pl.lit(None, dtype=pl.Float32).alias(name) for name in columns)
    if len(columns) == 2:
        with pytest.raises(ResultsError, match="all are null"):
            analyze(table.lazy())
    else:
        found = analyze(table.lazy())
        assert found.tokens["distance"].unique().to_list() == ["cosine_distance"]
        assert json.loads(as_json(found))["statistics"]["Full"]["l2_distance"]["mean"] is None
        assert "STATISTICS" in as_text(found)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (pl.lit(float("nan"), dtype=pl.Float32).alias("l2_distance"), "NaN or infinite"),
        (pl.lit(float("inf"), dtype=pl.Float32).alias("cosine_distance"), "NaN or infinite"),
        (pl.lit("Hea").alias("variant"), "unknown variant 'Hea'"),
        (pl.lit("Head_01").alias("variant"), "unknown variant 'Head_01'"),
        (pl.lit(None, dtype=pl.String).alias("variant"), "some rows lack variant"),
        (pl.lit(None, dtype=pl.Int32).alias("token_position"), "some rows lack token_position"),
    ],
)
def test_what_is_no_impact_table_is_said(change, says):
    with pytest.raises(ResultsError, match=says):
        analyze(impact_table().with_columns(change).lazy())


def test_no_rows():
    with pytest.raises(ResultsError, match="there are no rows; give"):
        analyze(impact_table().clear().lazy())
    with pytest.raises(ResultsError, match="no rows beyond position 0; leave --skip-first out"):
        analyze(impact_table().filter(token_position=0).lazy(), skip_first=True)


def test_the_report_fits_a_terminal_and_hides_no_sign():
    wide = pl.lit("a prompt with a long name\n").alias("prompt_id")
    far = (pl.col("token_position") * 99_999).cast(pl.Int32)
    for table in (impact_table(layers=2), impact_table(layers=2).with_columns(wide, far)):
        lines = as_text(analyze(table.lazy())).splitlines()
        assert max(width(line) for line in lines) <= 100
        assert all(sign.isprintable() or sign == "\u200e" for line in lines for sign in line)
    report = as_text(analyze(impact_table().lazy()))
    assert "' Tower\\n'" in report
    assert "' שלום'" in report
    assert "████" in report


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (None, "-"), (1.0, "1.00"), (0.5, "0.500"), (999.6, "1000"), (123456.7, "123457"),
     (0.00012, "0.000120"), (1.2345e-5, "1.23e-5"), (1.2345e-12, "1.2e-12"), (1e9, "1.00e9"), (3e38, "3.0e+38")],
)  # fmt: skip
def test_numbers_are_short(value, text):
    assert number(value) == text


def test_json_is_plain_and_whole():
    found = json.loads(as_json(analyze(impact_table().lazy(), top=2)), parse_constant=pytest.fail)
    assert set(found) == {"provenance", "counts", "skip_first", "rankings", "profile", "statistics"}
    assert list(found["rankings"]) == ["Full", "Attn", "Head"]
    assert set(found["rankings"]["Full"]["l2_distance"]) == {"tokens", "layers", "cells"}
    best = found["rankings"]["Head"]["cosine_distance"]
    assert set(best) == {"tokens", "layers", "heads", "cells"}
    assert set(best["heads"][0]) == {"rank", "layer", "variant", "mean", "count"}
    assert set(best["tokens"][0]) == {"rank", "token_position", "token_masked", "mean", "count"}
    assert len(best["cells"]) == 2
    assert list(found["statistics"]) == variant_names(12)
    assert list(found["statistics"]["Attn"]["l2_distance"]) == [
        "count", "null_count", "mean", "std", "min", *QUANTILES, "max"
    ]  # fmt: skip
    assert [row["layer"] for row in found["profile"]["Attn"]["l2_distance"]] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
def test_the_command_prints_the_same_for_every_format(tmp_path, capsys, suffix):
    path = tmp_path / f"table.{suffix}"
    write_table(impact_table(), path)
    assert main(["analyze", str(path), "--top", "3"]) == 0
    assert capsys.readouterr().out == as_text(analyze(impact_table().lazy(), top=3))
    assert main(["analyze", str(path), "--json", "--skip-first"]) == 0
    assert capsys.readouterr().out == as_json(analyze(impact_table().lazy(), top=5, skip_first=True))


@pytest.mark.parametrize("name", ["none.csv", "table.txt", "cut.csv", "damaged.parquet"])
def test_the_command_says_in_one_line_what_is_wrong(tmp_path, capsys, name):
    (tmp_path / "table.txt").write_text("text")
    (tmp_path / "cut.csv").write_text(impact_table().write_csv()[:5000] + "\n1,a")
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1" * 10)
    assert main(["analyze", str(tmp_path / name)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("mask-impact: error: ")


@pytest.mark.parametrize("top", ["0", "-1", "x", "1.5", "²", "9" * 40])
def test_the_command_refuses_odd_numbers_of_rows(top, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["analyze", "table.csv", "--top", top])
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_command_needs_no_torch(tmp_path):
    path = tmp_path / "table.csv"
    write_table(impact_table(), path)
    script = (
        "import sys; from engine.commands import main; import engine.commands.analyze as command;"
        "command.build_parser(); early = {'polars', 'numpy'} & set(sys.modules); status = main(sys.argv[1:]);"
        "sys.exit(f'{early} early' if early else 'torch' if 'torch' in sys.modules else status)"
    )
    words = [sys.executable, "-W", "error", "-c", script, "analyze", str(path)]
    root = Path(__file__).parent.parent
    done = subprocess.run(words, capture_output=True, check=False, cwd=root, env={"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode() == as_text(analyze(impact_table().lazy(), top=5))


@pytest.mark.parametrize("skip_first", [False, True])
def test_prompts_in_one_piece_need_not_be_kept(monkeypatch, skip_first):
    """A dataset's rows give the findings of any table, though batches forget the tokens that cannot lead."""
    random = np.random.default_rng(3)
    parts = []
    for prompt in range(40):
        distances = random.exponential(size=(2, int(random.integers(2, 9)), 4, 2)).astype(np.float32)
        tokens = range(distances.shape[1])
        labels = {"layers": [0, 1], "positions": tokens, "pieces": [f"t{p % 3}" for p in tokens]}
        table = build_table(np.round(distances, 1), variants=variant_names(2), **labels)
        parts.append(table.select(pl.lit(prompt).alias("prompt_id"), pl.all()))
    lazy = pl.concat(parts).lazy()
    whole = analyze(lazy, top=7, skip_first=skip_first)
    for rows in (50, 333, 100_000):
        monkeypatch.setattr(cells, "BATCH_ROWS", rows)
        found = analyze(lazy, top=7, skip_first=skip_first, num_prompts=40)
        assert found.counts == whole.counts
        for name in ("tokens", "layers", "heads", "cells", "profile", "statistics"):
            assert getattr(found, name).equals(getattr(whole, name)), (rows, name)
