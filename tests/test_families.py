"""Every family of the fused route, in several variations, beside Hugging Face's own forward.

The truth is a float64 run of transformers' own modules: its eager attention for the unmasked run, and for every masked
one an attention that is written down from the definition.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
from comparing import assert_same
from naive_questions import naive_answer
from twin_forward import look
from twin_runs import Asked, Twin

from benchmarks.anatomy import layers_of
from benchmarks.naive import naive_table, run_naive
from benchmarks.oracle import float64_model
from benchmarks.parity import forward_errors
from benchmarks.zoo import CASES, build, token_ids
from engine import AttentionMasker
from engine.errors import PromptError

# (dtype, largest error as a share of the largest value, why)
FORWARD_TOLERANCES = {
    "float64": (1e-13, "rounding of float64 through three layers; a float32 anywhere would leave 1e-8"),
    "float32": (2e-5, "rounding of float32 through three layers, in another order than Hugging Face's"),
}
# column -> (rtol, atol, share of the baseline vector, why)
FLOAT64 = {
    "l2_distance": (1e-9, 0.0, 1e-13, "the twin subtracts two float64 vectors"),
    "cosine_distance": (1e-8, 1e-14, 0.0, "1 - cos in float64 resolves nothing below"),
    "attention_mass": (1e-12, 0.0, 0.0, "the same pattern"),
    "relative_l2": (1e-9, 1e-13, 0.0, "as the distance"),
    "kl_divergence": (1e-8, 1e-12, 0.0, "differences of log-probabilities of some tens"),
    "answer_logprob": (1e-11, 0.0, 0.0, "the same"),
    "answer_logprob_masked": (1e-9, 0.0, 0.0, "the same, after effects have travelled"),
    "answer_logprob_change": (1e-8, 1e-12, 0.0, "the same"),
}
FLOAT32 = {
    "l2_distance": (2e-4, 0.0, 1e-9, "rounding of float32 through all layers; the differences are carried"),
    "cosine_distance": (4e-4, 1e-9, 0.0, "the same, twice"),
}
QUESTIONS: list[dict[str, Any]] = [
    {"cut": "window:1", "hidden_from": "query", "read": "output"},
    {"cut": "window:2", "hidden_from": "others", "read": "output", "answer": [5, 60]},
    {"cut": "all", "hidden_from": "others", "read": "layer", "sites": ["MLP", "Resid"]},
    {"cut": "all", "hidden_from": "others", "read": "output", "query": [3, 6]},
    {"query": "all", "intervention": "value-mean", "heads": [0, 2]},
    {
        "sites": ["MLP", "Resid", "Result_h"],
        "columns": ["attention_mass", "relative_l2"],
        "mask": [[0, 1], [2, 5], [6]],
    },
    {"cut": "window:2", "hidden_from": "all", "read": "output", "intervention": "value-zero"},
]
VARIED = ["gemma-2", "gemma-3", "phi-3-partial-rotary", "olmo-2", "granite-biases-tied", "gpt-2", "gpt-neox", "mixtral"]
VARIED += ["smollm3-window-without-rope", "qwen3-moe-sparse-step", "gpt-oss", "gpt-oss-window-of-one"]

pytestmark = pytest.mark.usefixtures("one_thread")
every_case = pytest.mark.parametrize("name", [case.name for case in CASES])
BY_NAME = {case.name: case for case in CASES}
ROUTED = [case.name for case in CASES if case.family in ("Qwen3-MoE", "Mixtral", "gpt-oss")]
WITH_SINKS = [case.name for case in CASES if case.family == "gpt-oss"]


def tiny(name: str) -> Any:
    """A new model every time: the tables of a dynamic rope depend on the prompts that a model has read."""
    return build(BY_NAME[name])


def wide(name: str) -> Any:
    return float64_model(tiny(name))


@every_case
@pytest.mark.parametrize("dtype", FORWARD_TOLERANCES)
def test_streams_and_logits_equal_eager_hugging_face(name, dtype):
    model, (tolerance, why) = (wide if dtype == "float64" else tiny)(name), FORWARD_TOLERANCES[dtype]
    assert max(forward_errors(model, token_ids(BY_NAME[name]))) < tolerance, why


@every_case
def test_the_table_is_the_naive_one(name):
    ids = token_ids(BY_NAME[name])
    assert_same(AttentionMasker(wide(name)).run(ids), naive_answer(wide(name), ids), FLOAT64)


@every_case
def test_the_table_of_float32_differs_by_rounding_alone(name):
    ids = token_ids(BY_NAME[name])
    assert_same(AttentionMasker(tiny(name)).run(ids), naive_answer(wide(name), ids), FLOAT32)


@pytest.mark.parametrize("name", sorted(set(BY_NAME) - set(VARIED)))
def test_a_question_whose_effects_travel(name):
    ids, words = token_ids(BY_NAME[name])[:7], QUESTIONS[list(BY_NAME).index(name) % len(QUESTIONS)]
    assert_same(AttentionMasker(wide(name)).run(ids, **words), naive_answer(wide(name), ids, **words), FLOAT64)


@pytest.mark.parametrize("words", QUESTIONS, ids=lambda words: "-".join(map(str, words.values())).replace(" ", ""))
@pytest.mark.parametrize("name", VARIED)
def test_every_question_where_layers_differ_most(name, words):
    ids = token_ids(BY_NAME[name])[:7]
    assert_same(AttentionMasker(wide(name)).run(ids, **words), naive_answer(wide(name), ids, **words), FLOAT64)


@pytest.mark.parametrize("name", ["gemma-2", "gemma-3", "gpt-2", "gpt-oss", "mixtral-window-top-1"])
def test_prompts_of_different_lengths_share_a_pass(name):
    ids = token_ids(BY_NAME[name])
    prompts = {"long": ids, "short": ids[:3], "other": ids[::-1][:6], "two": ids[4:6]}
    for prompt_id, table in AttentionMasker(wide(name)).run_many(prompts):
        assert_same(table, naive_answer(wide(name), prompts[prompt_id]), FLOAT64)


@pytest.mark.parametrize("name", ["gemma-2", "gemma-3", "gpt-oss", "gpt-2", "phi-3-longrope"])
def test_prompts_so_long_that_variants_share_their_sums(name):
    case = BY_NAME[name]
    positions = "n_positions" if name == "gpt-2" else "max_position_embeddings"
    longer = replace(case, config=case.config | {positions: 96, "sliding_window": 70}, length=80)
    model, ids = float64_model(build(longer)), token_ids(longer)
    ours, naive = AttentionMasker(model).run(ids, layers=[0, 1]), naive_table(run_naive(model, ids, layers=[0, 1]))
    for column, share in (("l2_distance", 1e-12), ("cosine_distance", 1e-13)):
        np.testing.assert_allclose(ours[column], naive[column], rtol=1e-7, atol=share)


@every_case
def test_one_token(name):
    """Without a sink there is nothing left to attend to; with one, everything goes there and the heads are zero."""
    if name not in WITH_SINKS:
        with pytest.raises(PromptError, match="nothing left to attend to"):
            AttentionMasker(wide(name)).run([7])
        return
    table = AttentionMasker(wide(name)).run([7])
    assert_same(table, naive_answer(wide(name), [7]), FLOAT64)
    heads = table.filter(pl.col("variant").cast(pl.String).str.starts_with("Head"))
    assert (table["l2_distance"] > 0).all()
    assert table["l2_distance"].null_count() == 0
    assert heads["cosine_distance"].null_count() == heads.height


@every_case
def test_the_first_query_without_its_key_is_defined_where_there_are_sinks_alone(name):
    ids, words = token_ids(BY_NAME[name])[:5], {"query": [0, 3], "tokens": [0]}
    table = AttentionMasker(wide(name)).run(ids, **words)
    assert_same(table, naive_answer(wide(name), ids, **words), FLOAT64)
    first = table.filter(pl.col("query_position") == 0)
    assert first["l2_distance"].null_count() == (0 if name in WITH_SINKS else first.height)


@pytest.mark.parametrize("name", ROUTED)
def test_a_mask_changes_the_experts_that_are_chosen(name):
    """In some cell at least, and in none of the cells that the tables agree on is it left out."""
    assert changed_choices(name) > 0


def changed_choices(name: str) -> int:
    """Cells (layer, masked token) in which the query is sent to other experts than without the mask."""
    twin, seen = Twin(wide(name), token_ids(BY_NAME[name]), Asked()), dict[int, set[int]]()
    for index, layer in enumerate(layers_of(twin.model)):
        if router := getattr(layer.mlp, "gate", None) or getattr(layer.mlp, "router", None):
            router.register_forward_hook(lambda _, __, out, index=index: seen.update({index: set(out[2][-1].tolist())}))
    look(twin.model, twin.prompt)
    unmasked, changed = dict(seen), 0
    for layer in unmasked:
        for group in twin.groups:
            twin.run(layer, len(twin.prompt) - 1, group)
            changed += seen[layer] != unmasked[layer]
    return changed
