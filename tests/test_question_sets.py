"""Sets with other questions: the same numbers as alone, continued with the same question and refused with another."""

import json
import os
import random
import time

import numpy as np
import polars as pl
import pytest
from kills import contents, finish, start, trial, write_prompts
from test_cli_questions import TEMPLATE

from engine import AttentionMasker, read_results
from engine.commands import main
from engine.datasets import shards
from engine.tables.effects import EFFECT_COLUMNS

PROMPTS = ["The Eiffel Tower is in", "The capital of France is", "Paris is in", "The river is in France"]


@pytest.fixture(scope="module")
def masker():
    return AttentionMasker.from_pretrained(device="cpu")


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("".join(f"{prompt}\n" for prompt in PROMPTS))
    return path


def run(*words):
    return main([*map(str, words), "--device", "cpu", "--quiet"])


@pytest.mark.parametrize("form", ["parquet", "csv"])
@pytest.mark.parametrize(
    "words",
    [
        {"read": "output", "cut": "window:2", "hidden_from": "query", "query": "all"},
        {"read": "output", "cut": "all", "answer": " Paris", "mask": "words"},
        {"mask": r"regex:The \w+", "columns": "relative_l2,attention_mass"},
        {"query": "all", "sites": "MLP,Result_h"},
    ],
    ids=str,
)
def test_a_set_holds_what_each_prompt_gives_alone(masker, tmp_path, words, form, capsys):
    masker.run_dataset(PROMPTS, tmp_path / "set", form=form, **words)
    results = read_results(tmp_path / "set").collect()
    rejected = 0
    for number, prompt in enumerate(PROMPTS):
        rows = results.filter(prompt_id=number).drop("prompt_id")
        if "regex" in words.get("mask", "") and "The" not in prompt:
            rejected += rows.is_empty()
            continue
        alone = masker.run(prompt, **words)
        assert rows.columns == alone.columns
        for name, kind in alone.schema.items():
            if kind.is_float():
                np.testing.assert_allclose(rows[name].to_numpy(), alone[name].to_numpy(), rtol=5e-3, atol=1e-5)
            else:
                assert rows[name].cast(pl.String).equals(alone[name].cast(pl.String)), name
    reasons = (pl.read_parquet if form == "parquet" else pl.read_csv)(tmp_path / "set" / f"rejected.{form}")
    assert len(reasons) == rejected
    assert main(["analyze", str(tmp_path / "set"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["counts"]["prompts"] == len(PROMPTS) - rejected
    assert found["provenance"]["question"] == found["provenance"]["manifest"]["settings"]["question"]


def test_a_set_in_which_nothing_is_measured_has_the_columns_of_its_question(masker, tmp_path):
    masker.run_dataset(["", "x"], tmp_path / "set", read="output")
    assert read_results(tmp_path / "set").collect().columns == ["prompt_id", *EFFECT_COLUMNS]


def test_tokens_of_a_chat_have_roles(masker, tmp_path, monkeypatch):
    monkeypatch.setattr(masker.tokenizer, "chat_template", TEMPLATE, raising=False)
    masker.run_dataset(PROMPTS, tmp_path / "set", chat=True, system="Say where.", layers=[0])
    tokens = pl.read_parquet(tmp_path / "set" / "tokens.parquet")
    assert tokens.schema["is_special"] == pl.Boolean
    assert tokens["role"].unique().drop_nulls().sort().to_list() == ["assistant", "system", "user"]
    first = tokens.filter(pl.col("prompt_id") == 0, pl.col("role") == "user")
    assert " Tower" in first["token"].to_list()
    assert pl.read_parquet(tmp_path / "set" / "prompts.parquet")["text"].to_list() == PROMPTS


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--cut", "all"], "--cut (window:2 there, all here)"),
        ([], "--cut (window:2 there, layer here); --hidden-from (query there, all here); --read (output there, layer"),
        (["--heads", "1,2:3"], "--heads (all there, 1,2:3 here)"),
    ],
)
def test_another_question_is_refused_with_what_differs(prompts, tmp_path, capsys, words, message):
    first = ["--read", "output", "--cut", "window:2", "--hidden-from", "query"]
    assert run("--prompts", prompts, "--output", tmp_path / "set", *first) == 0
    second = [*first, *words] if words else []
    assert run("--prompts", prompts, "--output", tmp_path / "set", *second) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert run("--prompts", prompts, "--output", tmp_path / "set", *first) == 0
    assert run("--prompts", prompts, "--output", tmp_path / "set", *second, "--overwrite") == 0


def test_a_file_of_spans_is_known_by_what_it_holds(prompts, tmp_path, capsys):
    spans = tmp_path / "spans.csv"
    spans.write_text("prompt_id,start,end\n0,4,16\n1,4,11\n")
    words = ["--prompts", prompts, "--output", tmp_path / "set"]
    assert run(*words, "--mask", f"spans:{spans}") == 0
    assert read_results(tmp_path / "set").select("prompt_id", "token_masked").unique().collect().sort(
        "prompt_id"
    ).rows() == [(0, "Eiffel Tower"), (1, "capital")]
    moved = spans.rename(tmp_path / "moved.csv")
    assert run(*words, "--mask", f"spans:{moved}") == 0
    moved.write_text("prompt_id,start,end\n0,4,15\n1,4,11\n")
    assert run(*words, "--mask", f"spans:{moved}") == 2
    assert "differs in settings spans (sha256:" in capsys.readouterr().err


def test_workers_find_a_file_of_spans_from_anywhere(prompts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spans.csv").write_text("positions\n1+2\n")
    assert run("--prompts", prompts, "--output", "set", "--mask", "spans:spans.csv", "--workers", "2") == 0
    assert read_results("set").collect()["masked_positions"].unique().to_list() == ["1+2"]


def test_a_dataset_from_before_there_were_questions_goes_on(masker, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "MOST_PROMPTS", 1)

    def stop(state):
        raise RuntimeError("killed")

    masker.run_dataset(PROMPTS, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="killed"):
        masker.run_dataset(PROMPTS, tmp_path / "set", watch=stop)
    path = tmp_path / "set" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["settings"]["question"]
    path.write_text(json.dumps(manifest))
    assert masker.run_dataset(PROMPTS, tmp_path / "set")["status"] == "complete"
    assert read_results(tmp_path / "set").collect().equals(read_results(tmp_path / "whole").collect())
    with pytest.raises(ValueError, match=r"--query \(last there, all here\)"):
        masker.run_dataset(PROMPTS, tmp_path / "set", query="all")


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_killed_run_of_effects_goes_on_to_the_same_dataset(tmp_path):
    write_prompts(tmp_path / "prompts.txt", 200)
    options = ("--read", "output", "--cut", "window:2", "--mask", "words", "--query", "all")
    began = time.perf_counter()
    assert finish(start(tmp_path / "prompts.txt", tmp_path / "whole", *options)) is None
    seconds, draw = time.perf_counter() - began, random.Random(0)
    trial(tmp_path / "prompts.txt", tmp_path / "killed", seconds=seconds, draw=draw, options=options)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
