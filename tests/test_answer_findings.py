"""What stands out in effects tables, beside plain sums over the whole table; and in tables with other sites."""

import json

import polars as pl
import pytest

from engine import AttentionMasker
from engine.commands import main
from engine.errors import ResultsError
from engine.findings import answers
from engine.findings.analysis import analyze
from engine.findings.answers import MEASURES, analyze_answers
from engine.findings.answers_report import as_json, as_text
from engine.tables.results import write_table

PROMPTS = ["The Eiffel Tower is in", "The capital of France is", "Paris is in", "The river is in France"]


@pytest.fixture(scope="module")
def masker():
    return AttentionMasker.from_pretrained(device="cpu")


@pytest.fixture(scope="module")
def table(masker):
    found = masker.run_many(PROMPTS, read="output", query="all", hidden_from="all")
    return pl.concat(part.select(pl.lit(number).alias("prompt_id"), pl.all()) for number, part in found)


def means(table, measure, labels):
    score = pl.col(measure).cast(pl.Float64).abs().mean().alias("mean")
    return table.group_by(labels).agg(score).drop_nulls("mean").sort("mean", descending=True)


@pytest.mark.parametrize("in_pieces", [False, True])
@pytest.mark.parametrize("rows", [7, 500_000])
def test_rankings_are_means_of_absolute_values(table, monkeypatch, rows, in_pieces):
    monkeypatch.setattr(answers, "BATCH_ROWS", rows)
    found = analyze_answers(table.lazy(), top=4, num_prompts=len(PROMPTS) if in_pieces else None)
    assert found.counts["rows"] == table.height
    assert found.counts["prompts"] == len(PROMPTS)
    assert found.counts["undefined"] == table["kl_divergence"].null_count() > 0
    for measure in MEASURES:
        for frame, labels in ((found.tokens, ["prompt_id", "token_position"]), (found.layers, ["layer"])):
            ours = frame.filter(distance=measure)
            theirs = means(table, measure, labels).head(4)
            assert ours.select(labels).rows() == theirs.select(labels).rows()
            assert ours["mean"].to_list() == pytest.approx(theirs["mean"].to_list(), rel=1e-6)
            assert ours["rank"].to_list() == [1, 2, 3, 4]
        strongest = table.drop_nulls(measure).sort(pl.col(measure).abs(), descending=True).head(4)
        effects = found.effects.filter(distance=measure)
        assert effects[measure].to_list() == strongest[measure].to_list()
        assert effects["top_token_masked"].to_list() == strongest["top_token_masked"].to_list()


def test_position_0_is_left_out_on_request(table):
    found = analyze_answers(table.lazy(), skip_first=True)
    assert found.counts["skipped_rows"] == table.filter(token_position=0).height
    assert 0 not in found.tokens["token_position"]
    assert "Position 0 is left out" in as_text(found)


def test_effects_of_all_layers_have_a_layer_of_their_own(masker):
    table = masker.run(PROMPTS[0], read="output", cut="all", mask="words")
    found = analyze_answers(table.lazy())
    assert found.layers["layer"].to_list() == [None, None]
    assert "all" in as_text(found)
    told = json.loads(as_json(found))
    assert set(told["rankings"]) == set(MEASURES)
    assert told["rankings"]["kl_divergence"]["effects"][0]["masked_positions"]
    assert told["provenance"] is None


@pytest.mark.parametrize("value", [None, float("inf")])
def test_effects_that_are_no_numbers_are_refused(table, value):
    broken = table.with_columns(pl.lit(value, dtype=pl.Float32).alias(name) for name in MEASURES)
    with pytest.raises(ResultsError, match="no effect is defined" if value is None else "NaN or infinite"):
        analyze_answers(broken.lazy())
    with pytest.raises(ResultsError, match="no effect is defined"):
        analyze_answers(table.clear().lazy())


def test_a_damaged_effects_table_is_refused(table, tmp_path, capsys):
    write_table(table.drop("kl_divergence"), tmp_path / "table.csv")
    assert main(["analyze", str(tmp_path / "table.csv")]) == 2
    assert "is not an effects table: it lacks kl_divergence" in capsys.readouterr().err


def test_other_sites_have_rankings_of_their_own(masker, capsys, tmp_path):
    table = masker.run(PROMPTS[0], sites="MLP,Resid,Result_h", query="all")
    found = analyze(table.lazy(), top=3)
    assert found.statistics.filter(distance="l2_distance")["variant"].to_list() == [
        *("Full", "Attn", "Head_0", "Head_1", "Head_2", "Head_3", "MLP", "Resid"),
        *("Result_0", "Result_1", "Result_2", "Result_3"),
    ]
    assert found.heads["kind"].unique().sort().to_list() == ["Head", "Result"]
    variant = table.with_columns(pl.col("variant").cast(pl.String)).filter(variant="Result_2")
    row = found.statistics.filter(distance="l2_distance", variant="Result_2")
    assert row["mean"].item() == pytest.approx(variant["l2_distance"].cast(pl.Float64).mean())
    write_table(table, tmp_path / "table.parquet")
    assert main(["analyze", str(tmp_path / "table.parquet")]) == 0
    said = capsys.readouterr().out
    assert "RESULT: what each head adds" in said
    assert "5 query positions" in said
