"""Means over prompts and comparisons agree with plain loops over plain rows, and errors are one line."""

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from benchmarks.made_dataset import make_dataset
from engine import AttentionMasker
from engine.commands import main
from engine.errors import ResultsError
from engine.findings import across, cells, intervals
from engine.findings.across import analyze_across
from engine.findings.across_report import as_text, comparison_as_text
from engine.findings.comparison import compare
from engine.findings.intervals import NORMAL_95, Bootstrap
from engine.findings.terminal import width
from engine.tables.results import write_table
from engine.tables.table import build_table, variant_names

ROOT = Path(__file__).parent.parent
TEXTS = ["a", " b", "東京", "<i>\n", ""]
WAYS = ["text", "position", "layer", "head"]


def prompt_table(prompt: object, *, count: int, seed: int, layers: int = 3, heads: int = 3) -> pl.DataFrame:
    """A prompt's table with ties, nulls and repeated tokens; position 0 of its first layer is undefined in all."""
    random = np.random.default_rng(seed)
    distances = np.round(random.exponential(size=(layers, count, 2 + heads, 2)), 1).astype(np.float32)
    distances[random.random(distances.shape) < 0.1] = np.nan
    distances[0, 0] = np.nan
    pieces = [TEXTS[int(place)] for place in random.integers(0, len(TEXTS), count)]
    labels = {"layers": range(layers), "positions": range(count), "pieces": pieces}
    table = build_table(distances, variants=variant_names(heads), **labels)
    return table.select(pl.lit(prompt).alias("prompt_id"), pl.all())


def prompts_table(prompts: int, *, seed: int = 0) -> pl.DataFrame:
    counts = np.random.default_rng(seed).integers(1, 8, prompts).tolist()
    return pl.concat(prompt_table(p, count=n, seed=seed + p) for p, n in enumerate(counts))


def group_of(row: dict, by: str, end: int) -> object:
    behind = row.get("query_position", end) - row["token_position"]
    place = "first" if row["token_position"] == 0 else "last" if behind == 0 else f"-{behind}"
    return {
        "text": row["token_masked"],
        "position": place,
        "layer": row["layer"],
        "head": (row["layer"], row.get("variant")),
    }[by]


def means_by_hand(table: pl.DataFrame, by: str, measures=("l2_distance", "cosine_distance")) -> dict:
    """(measure, kind, group) -> prompt -> mean of its defined cells."""
    ends = dict(table.group_by("prompt_id").agg(pl.col("token_position").max()).rows())
    found = defaultdict(lambda: defaultdict(list))
    for row in table.to_dicts():
        kind = row["variant"].partition("_")[0] if "variant" in row else "Answer"
        for measure in measures if by != "head" or kind == "Head" else ():
            if row[measure] is not None:
                group = group_of(row, by, ends[row["prompt_id"]])
                found[measure, kind, group][row["prompt_id"]].append(row[measure])
    return {key: {p: float(np.mean(v)) for p, v in each.items()} for key, each in found.items()}


def key_of(row: dict, by: str) -> tuple:
    group = {"text": "token_masked", "position": "place", "layer": "layer"}
    return row["distance"], row["kind"], (row["layer"], row["variant"]) if by == "head" else row[group[by]]


@pytest.mark.parametrize("rows", [7, 50, 500_000])
@pytest.mark.parametrize("by", WAYS)
def test_means_over_prompts_agree_with_loops(monkeypatch, by, rows):
    monkeypatch.setattr(cells, "BATCH_ROWS", rows)
    table = prompts_table(40)
    found = analyze_across(table.lazy(), by=by, min_count=1)
    expected = means_by_hand(table, by)
    assert found.bootstrap is None
    assert found.prompts == len({prompt for each in expected.values() for prompt in each})
    assert {key_of(row, by) for row in found.groups.to_dicts()} == set(expected)
    for row in found.groups.to_dicts():
        values = list(expected[key_of(row, by)].values())
        assert row["prompts"] == len(values)
        assert row["mean"] == pytest.approx(np.mean(values), abs=1e-8)
        if len(values) == 1:
            assert (row["low"], row["high"]) == (None, None)
        else:
            half = NORMAL_95 * np.std(values, ddof=1) / np.sqrt(len(values))
            assert (row["low"], row["high"]) == pytest.approx(
                (np.mean(values) - half, np.mean(values) + half), abs=1e-7
            )


@pytest.mark.parametrize("rows", [11, 500_000])
def test_how_often_a_head_is_among_the_greatest_agrees_with_loops(monkeypatch, rows):
    monkeypatch.setattr(cells, "BATCH_ROWS", rows)
    table = prompts_table(40)
    found = analyze_across(table.lazy(), by="head", among=2, min_count=1)
    means = means_by_hand(table, "head")
    for measure in ("l2_distance", "cosine_distance"):
        prompts = sorted({p for key, each in means.items() if key[0] == measure for p in each})
        hits = defaultdict(int)
        for prompt in prompts:
            scored = [
                (-round(each[prompt], 9), key[2]) for key, each in means.items() if key[0] == measure and prompt in each
            ]
            for _, head in sorted(scored)[:2]:
                hits[head] += 1
        rows = found.groups.filter(distance=measure).to_dicts()
        for row in rows:
            assert row["often"] == pytest.approx(hits[row["layer"], row["variant"]] / len(prompts))


def test_ranking_by_size_and_natural_orders():
    groups = analyze_across(prompts_table(40).lazy(), by="text").groups.filter(distance="l2_distance", kind="Attn")
    assert groups["mean"].to_list() == sorted(groups["mean"], reverse=True)
    places = analyze_across(prompts_table(40).lazy(), by="position").groups.filter(distance="l2_distance", kind="Attn")
    assert places["place"].to_list()[:4] == ["first", "last", "-1", "-2"]


def test_lengths_say_where_the_query_is():
    table = prompts_table(40).filter(pl.col("token_position") < 2)
    lengths = pl.DataFrame({"prompt_id": range(40), "num_tokens": [9] * 40})
    found = analyze_across(table.lazy(), by="position", lengths=lengths)
    assert set(found.groups["place"]) == {"first", "-7"}


def test_rare_groups_are_left_out_of_many_prompts():
    rare = prompt_table(99, count=2, seed=5).with_columns(token_masked=pl.lit("rare"))
    table = pl.concat(
        [prompts_table(40), rare.with_columns(pl.col("prompt_id").cast(pl.Int64))], how="vertical_relaxed"
    )
    assert "rare" not in set(analyze_across(table.lazy(), by="text").groups["token_masked"])
    assert "rare" in set(analyze_across(table.lazy(), by="text", min_count=1).groups["token_masked"])


def test_few_prompts_are_resampled_as_a_loop_would(monkeypatch):
    monkeypatch.setattr(intervals, "GROUPS_AT_ONCE", 3)
    table = prompts_table(12)
    found = analyze_across(table.lazy(), by="text")
    assert found.bootstrap == Bootstrap(2_000)
    means = means_by_hand(table, "text")
    ids = sorted({prompt for each in means.values() for prompt in each})
    random = np.random.default_rng(0)
    draws = [random.integers(0, len(ids), len(ids)) for _ in range(2_000)]
    for row in found.groups.filter(kind="Attn", distance="cosine_distance").to_dicts():
        values = [means[key_of(row, "text")].get(prompt, np.nan) for prompt in ids]
        taken = np.array([[values[i] for i in draw] for draw in draws])
        held = ~np.isnan(taken)
        resampled = np.where(held, taken, 0).sum(1)[held.any(1)] / held.sum(1)[held.any(1)]
        assert (row["low"], row["high"]) == pytest.approx(tuple(np.percentile(resampled, (2.5, 97.5))), rel=1e-5)


def test_a_bootstrap_that_is_asked_for_is_near_the_normal_interval():
    lazy = prompts_table(300).lazy()
    normal = analyze_across(lazy, by="layer").groups
    drawn = analyze_across(lazy, by="layer", bootstrap=Bootstrap(3_000, seed=1)).groups
    assert drawn["low"].to_list() == pytest.approx(normal["low"].to_list(), rel=0.03)
    again = analyze_across(lazy, by="layer", bootstrap=Bootstrap(3_000, seed=1)).groups
    assert drawn.equals(again)


def test_a_bootstrap_beyond_memory_is_refused(monkeypatch):
    monkeypatch.setattr(intervals, "MOST_DRAWN", 10_000)
    with pytest.raises(ResultsError, match="1,000 resamples of 39 prompts or more are too many"):
        analyze_across(prompts_table(40).lazy(), by="layer", bootstrap=Bootstrap(1_000))


@pytest.mark.parametrize("by", WAYS)
def test_one_prompt_without_an_id_has_no_interval(by):
    found = analyze_across(prompt_table(0, count=4, seed=1).drop("prompt_id").lazy(), by=by)
    assert found.prompts == 1
    assert found.groups["low"].null_count() == len(found.groups)
    assert "there is no interval" in as_text(found, top=3)


def test_several_queries_are_one_prompt():
    tables = [prompt_table(p, count=5, seed=p) for p in range(3)]
    parts = [t.filter(pl.col("token_position") <= q).with_columns(query_position=q) for t in tables for q in (3, 4)]
    table = pl.concat(parts)
    found = analyze_across(table.lazy(), by="position", min_count=1)
    expected = means_by_hand(table, "position")
    for row in found.groups.to_dicts():
        assert row["mean"] == pytest.approx(np.mean(list(expected[key_of(row, "position")].values())), abs=1e-8)


@pytest.fixture(scope="module")
def effects():
    prompts = ["The Eiffel Tower is in", "The capital of France is", "Paris is in", "The river is in France"]
    found = AttentionMasker.from_pretrained(device="cpu").run_many(
        prompts, read="output", query="all", hidden_from="all"
    )
    return pl.concat(part.select(pl.lit(number).alias("prompt_id"), pl.all()) for number, part in found)


@pytest.mark.parametrize("rows", [9, 500_000])
@pytest.mark.parametrize("by", ["text", "position", "layer"])
def test_effects_keep_their_sign(effects, monkeypatch, by, rows):
    monkeypatch.setattr(across, "BATCH_ROWS", rows)
    found = analyze_across(effects.lazy(), by=by)
    expected = means_by_hand(effects, by, ("answer_logprob_change", "kl_divergence"))
    assert {key_of(row, by) for row in found.groups.to_dicts()} == set(expected)
    for row in found.groups.to_dicts():
        assert row["mean"] == pytest.approx(np.mean(list(expected[key_of(row, by)].values())), rel=1e-6, abs=1e-8)
    assert found.groups["mean"].min() < 0
    assert "change of the answer's log-probability" in as_text(found, top=3)


def test_effects_have_no_heads(effects):
    with pytest.raises(ResultsError, match="nothing to compare by head"):
        analyze_across(effects.lazy(), by="head")


def test_rows_of_a_prompt_that_lie_apart_are_refused(monkeypatch):
    monkeypatch.setattr(cells, "BATCH_ROWS", 20)
    table = prompts_table(5)
    with pytest.raises(ResultsError, match="do not follow one another; sort the table by prompt_id"):
        analyze_across(pl.concat([table, table.filter(prompt_id=0)]).lazy(), by="layer")


@pytest.mark.parametrize(
    ("value", "says"), [(np.inf, "NaN or infinite"), (np.nan, "NaN or infinite"), (None, "nothing to compare")]
)
def test_tables_without_numbers_are_refused(value, says):
    numbers = [pl.lit(value, dtype=pl.Float32).alias(name) for name in ("l2_distance", "cosine_distance")]
    for by in WAYS:
        with pytest.raises(ResultsError, match=says):
            analyze_across(prompts_table(3).with_columns(numbers).lazy(), by=by)
    with pytest.raises(ResultsError, match="nothing to compare"):
        analyze_across(prompts_table(3).clear().lazy(), by="text")


def changed(table: pl.DataFrame, seed: int = 3) -> pl.DataFrame:
    noise = np.random.default_rng(seed).normal(0.5, 0.2, len(table)).astype(np.float32)
    return table.with_columns(l2_distance=pl.col("l2_distance") + noise, cosine_distance=pl.col("cosine_distance") * 2)


@pytest.mark.parametrize("rows", [13, 500_000])
@pytest.mark.parametrize("by", WAYS)
def test_paired_differences_agree_with_loops(monkeypatch, by, rows):
    monkeypatch.setattr(cells, "BATCH_ROWS", rows)
    a = prompts_table(40)
    b = changed(a)
    order = np.random.default_rng(7).permutation(40).tolist()
    shuffled = pl.concat(b.filter(prompt_id=p) for p in order)
    found = compare(a.lazy(), shuffled.lazy(), by=[by], min_count=1)
    first, second = means_by_hand(a, by), means_by_hand(b, by)
    assert found.paired + found.alone[0] == len({p for each in first.values() for p in each}) + found.alone[0]
    assert (found.alone, found.differing) == ((0, 0), 0)
    groups = found.groups[by].to_dicts()
    assert {key_of(row, by) for row in groups} == set(first)
    for row in groups:
        ours, theirs = first[key_of(row, by)], second[key_of(row, by)]
        differences = [theirs[prompt] - ours[prompt] for prompt in ours]
        assert row["difference"] == pytest.approx(np.mean(differences), abs=2e-7)
        assert row["mean_a"] == pytest.approx(np.mean(list(ours.values())), abs=1e-8)
        assert row["mean_b"] == pytest.approx(np.mean(list(theirs.values())), abs=1e-8)
        if row["mean_a"]:
            assert row["relative"] == pytest.approx(row["difference"] / row["mean_a"], rel=1e-6)
        if len(ours) > 1:
            half = NORMAL_95 * np.std(differences, ddof=1) / np.sqrt(len(ours))
            assert row["high"] - row["low"] == pytest.approx(2 * half, abs=2e-7)


def test_prompts_without_partner_or_with_other_tokens_are_left_out():
    a = prompts_table(40).filter(pl.col("prompt_id") > 1)
    other = pl.when(pl.col("prompt_id") == 5).then(pl.lit("other")).otherwise("token_masked").alias("token_masked")
    b = changed(prompts_table(39)).with_columns(other)
    found = compare(a.lazy(), b.lazy())
    have = {p for table in (a, b) for p in table.drop_nulls("l2_distance")["prompt_id"]}
    assert found.differing == 1
    assert found.alone == (len({39} & have), len({0, 1} & have))
    assert set(found.groups) == {"head", "text", "layer"}
    text = comparison_as_text(found, top=3, names=("a", "b"))
    assert "whose tokens differ" in text
    assert "Left out: 1 only in A." in text
    assert text.count("BY HEAD, the greatest changes first") == 1
    rare = compare(a.lazy(), b.lazy(), min_count=1000)
    assert comparison_as_text(rare, top=3, names=("a", "b")).count("(no group is in enough prompts)") == 3


def test_sets_without_a_prompt_in_common_are_compared_unpaired():
    a = prompts_table(40)
    b = changed(prompts_table(35, seed=9)).with_columns(pl.col("prompt_id") + 1000)
    found = compare(a.lazy(), b.lazy(), by=["layer"])
    assert found.paired == 0
    first, second = means_by_hand(a, "layer"), means_by_hand(b, "layer")
    for row in found.groups["layer"].to_dicts():
        ours, theirs = (list(each[key_of(row, "layer")].values()) for each in (first, second))
        half = NORMAL_95 * np.sqrt(np.var(ours, ddof=1) / len(ours) + np.var(theirs, ddof=1) / len(theirs))
        assert row["difference"] == pytest.approx(np.mean(theirs) - np.mean(ours), abs=2e-7)
        assert row["high"] - row["low"] == pytest.approx(2 * half, abs=2e-7)
    assert "unpaired" in comparison_as_text(found, top=3, names=("a", "b"))


def test_results_of_other_kinds_or_shapes_are_refused(effects):
    table = prompts_table(3)
    with pytest.raises(ResultsError, match="the first holds impacts, the second effects on the answer"):
        compare(table.lazy(), effects.lazy())
    with pytest.raises(ResultsError, match="the first has 3 layers, the second 2; compare results of the same model"):
        compare(table.lazy(), table.filter(pl.col("layer") < 2).lazy())
    few = table.filter(pl.col("variant").cast(pl.String) != "Head_2")
    with pytest.raises(ResultsError, match="the first has 3 heads, the second 2"):
        compare(table.lazy(), few.lazy(), by=["text"])
    assert compare(effects.lazy(), effects.lazy()).groups["layer"]["difference"].abs().max() == 0


def test_ids_of_two_types_are_compared_as_text(tmp_path, capsys):
    table = prompts_table(6)
    write_table(table, tmp_path / "a.parquet")
    write_table(changed(table), tmp_path / "b.csv")
    assert main(["analyze", str(tmp_path / "a.parquet"), str(tmp_path / "b.csv"), "--by", "head"]) == 0
    out = capsys.readouterr().out
    assert "that both hold, with the same tokens" in out
    assert max(map(width, out.splitlines())) <= 100


@pytest.mark.parametrize("words", [[], ["--by", "text"], ["--by", "head"], ["b.parquet"]], ids=str)
def test_the_command_says_and_writes_the_same(tmp_path, capsys, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    write_table(prompts_table(8), "a.parquet", provenance={"model": "m"})
    write_table(changed(prompts_table(8)), "b.parquet")
    for suffix in ("csv", "parquet", "json"):
        assert main(["analyze", "a.parquet", *words, "--json", "--output", f"found.{suffix}"]) == 0
    told = json.loads(capsys.readouterr().out.partition("}\n{")[0] + "}", parse_constant=pytest.fail)
    frame = pl.read_parquet("found.parquet")
    assert json.loads((tmp_path / "found.json").read_text())["findings"] == frame.to_dicts()
    assert pl.read_csv("found.csv", infer_schema_length=None).height == frame.height
    if words[:1] == ["--by"]:
        assert told["groups"] == frame.drop("finding").to_dicts()
        assert told["interval"] == {"level": 0.95, "method": "bootstrap", "resamples": 2000, "seed": 0}
    assert set(frame["finding"]) == {
        "--by": {words[-1]} if words else set(),
        "b.parquet": {"head", "text", "layer"},
    }.get(words[0] if words else "", {"tokens", "layers", "heads", "cells", "profile", "statistics"})


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--min-count", "3"], "--min-count is about many prompts; add --by text, position, layer, head"),
        (["--bootstrap", "500"], "--bootstrap is about many prompts"),
        (["--by", "text", "--among", "3"], "--among counts how often heads matter"),
        (["--output", "x.txt"], "'x.txt' cannot hold findings; end the name in .csv, .parquet, .json"),
        (["--output", "none/x.csv"], "its folder does not exist"),
        (["none.csv"], "'none.csv' does not exist"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    write_table(prompts_table(3), "a.csv")
    assert main(["analyze", "a.csv", *words]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert says in err


def test_memory_does_not_grow_with_prompts(tmp_path):
    """Ten times the prompts take no more than half as much again: what remains is a batch and the groups."""
    script = (
        "import resource, sys; from engine.commands import main; main(sys.argv[1:]);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
    )
    peaks = []
    for prompts in (300, 3000):
        folder = tmp_path / str(prompts)
        make_dataset(folder, prompts=prompts, layers=12, heads=8)
        words = [sys.executable, "-c", script, "analyze", str(folder), "--by", "text"]
        done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT)
        peaks.append(int(done.stderr))
    assert peaks[1] < 1.5 * peaks[0]
