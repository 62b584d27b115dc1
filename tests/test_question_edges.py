"""Questions at their edges: far moves of attention, broken weights, parts, words that travel."""

import copy
from dataclasses import replace
from functools import cache, partial

import numpy as np
import pytest
import torch
from comparing import assert_same
from naive_questions import naive_answer
from polars.testing import assert_frame_equal
from tiny import CASES, build, token_ids

from benchmarks.oracle import float64_model
from engine import AttentionMasker, read_results
from engine.errors import NumbersError, PromptError, SelectionError
from engine.questions.question import ask
from engine.runs.schedule import Schedule
from engine.tables.effects import EFFECT_SCHEMA


@cache
def wide(name="qwen3", queries_times=1):
    case = next(case for case in CASES if case.name == name)
    model = build(case)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.mul_(queries_times)
    return float64_model(model), (token_ids(case) * 8)[:8]


@pytest.mark.parametrize("words", [{"cut": "all"}, {"cut": "window:2", "read": "output"}])
def test_words_keep_whom(words):
    question = ask({**words, "hidden_from": "all"})
    assert ask(question.words()) == question


def test_a_dataset_holds_the_table_of_run(tmp_path):
    model, ids = wide()
    masker, words = AttentionMasker(model), {"cut": "window:2", "hidden_from": "all", "read": "output"}
    masker.run_dataset({"a": ids}, tmp_path / "set", **words)
    found = read_results(tmp_path / "set").collect().drop("prompt_id")
    assert_frame_equal(found, masker.run(ids, **words), check_exact=False)


@pytest.mark.parametrize("name", ["qwen2", "llama-3"])
def test_peaked_attention_that_moves_far(name):
    model, ids = wide(name, 30)
    words = {"cut": "window:1", "read": "output"}
    assert_same(AttentionMasker(model).run(ids, **words), naive_answer(model, ids, **words))


def test_an_answer_needs_room_behind_the_prompt():
    masker = AttentionMasker(build(replace(CASES[0], config=CASES[0].config | {"max_position_embeddings": 9})))
    prompt = list(range(1, 9))
    assert len(masker.run(prompt, read="output", answer=[5, 6]))
    with pytest.raises(PromptError, match="8 tokens and 2 of the answer behind it, the model reads 9; shorten one"):
        masker.run(prompt, read="output", answer=[5, 6, 7])


def test_negative_layers_have_no_heads():
    model, ids = wide()
    with pytest.raises(SelectionError):
        AttentionMasker(model).run(ids, heads=[(-1, 1)])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_unembedding_is_an_error(value):
    case = next(case for case in CASES if case.name == "qwen3")
    model = copy.deepcopy(build(case))
    with torch.no_grad():
        model.lm_head.weight[5] = value
    with pytest.raises(NumbersError):
        AttentionMasker(model).run(token_ids(case), read="output")


def test_next_tokens_of_a_job_in_parts():
    model, ids = wide()
    masker = AttentionMasker(model)
    task = masker._task(None, None, {"query": "all"})
    (job,) = masker.measuring.preparing(task).jobs([ids])
    measure = partial(masker.measuring.measure, task=task, next_tokens=1)
    schedule = Schedule(masker.decoder)
    whole = schedule.run({0: job}, measure)[0]
    schedule._in_memory = 12
    assert schedule.run({0: job}, measure)[0].next_tokens == whole.next_tokens


def test_the_schema_of_effects():
    case = next(case for case in CASES if case.name == "qwen3")
    table = AttentionMasker(build(case)).run(token_ids(case), read="output")
    assert dict(table.schema) == EFFECT_SCHEMA


def test_a_group_may_be_an_array(tmp_path):
    model, ids = wide()
    AttentionMasker(model).run_dataset({"a": ids}, tmp_path / "set", mask=[np.array([1, 2])])
    assert read_results(tmp_path / "set").collect()["masked_positions"].unique().to_list() == ["1+2"]
