"""Edges of the families: patterns that one key fills, models with layers taken out, and configs that cannot be."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.zoo import CASES, build, token_ids
from engine import AttentionMasker
from engine.errors import ModelError
from engine.kernels.scores import softmax
from engine.kernels.shifts import pattern_difference
from engine.model.adoption import adopt
from engine.model.fingerprint import fingerprint

BY_NAME = {case.name: case for case in CASES}
SINKS = {"no sink": None, "a weak sink": -9.0, "a sink that holds most": 22.0}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("hidden", [None, 0, 2], ids=["none hidden", "the most hidden", "a small one hidden"])
@pytest.mark.parametrize("sink", SINKS.values(), ids=SINKS)
def test_a_pattern_that_one_key_fills_moves_with_all_its_digits(sink, hidden):
    """All scores move together, by far more than the pattern does."""
    scores = torch.tensor([15.0, 1.0, 0.0, -2.0, -9.0]).expand(1, 1, 1, 1, 1, 5)
    shift = torch.tensor([[0.3, 0.3001, 0.29, 0.3, 0.31], [-40.0, -40.0, -39.9, -40.1, -40.0]])
    shift = shift.reshape(1, 1, 2, 1, 1, 5).clone()
    if hidden is not None:
        shift[..., hidden] = -torch.inf
    its = None if sink is None else torch.full((1, 1, 1, 1, 1), sink)
    _, change = pattern_difference(scores, shift, sink=its)
    wide = None if its is None else its.double()
    before, after = (softmax(each, wide) for each in (scores.double(), scores.double() + shift.double()))
    np.testing.assert_allclose(change, after - before, rtol=2e-5, atol=1e-22)


@pytest.mark.parametrize("name", ["gpt-neox", "granite", "smollm3", "gpt-oss-no-biases-top-1"])
def test_peaked_attention_keeps_its_digits_where_effects_travel(name):
    model, words = build(BY_NAME[name]), {"cut": "all", "hidden_from": "others"}
    for weight_name, weight in model.named_parameters():
        if any(part in weight_name for part in ("q_proj.w", "k_proj.w", "query_key_value.w")):
            weight.data.mul_(2)
    ids = token_ids(BY_NAME[name])[:8]
    narrow, wide = (AttentionMasker(each).run(ids, **words) for each in (model, copy.deepcopy(model).double()))
    np.testing.assert_allclose(narrow["l2_distance"], wide["l2_distance"], rtol=3e-4, atol=1e-25)


@pytest.mark.parametrize("name", ["gemma-2", "gpt-2", "gpt-oss"])
def test_a_model_with_its_last_layers_taken_out(name):
    """The config still counts them; transformers goes by the layers that are there."""
    whole = build(BY_NAME[name])
    few, ids = copy.deepcopy(whole), token_ids(BY_NAME[name])
    path = "transformer.h" if name == "gpt-2" else "model.layers"
    few.set_submodule(path, torch.nn.ModuleList(few.get_submodule(path)[:2]))
    assert AttentionMasker(few).run(ids).equals(AttentionMasker(whole).run(ids, layers=[0, 1]))
    assert AttentionMasker(few).run(ids, read="output")["layer"].max() == 1


def use_other_layer(model):
    model.model.layers[0] = model.model.layers[1]


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("smollm3", use_other_layer, "self_attn.use_rope of layer 0 is 0, but 1 by the config"),
        ("granite", lambda model: setattr(model.model.layers[1], "residual_multiplier", 0.9), "multiplier of layer 1"),
        ("gpt-neox", lambda model: setattr(model.gpt_neox.layers[2], "use_parallel_residual", False), "of layer 2"),
        ("mixtral", lambda model: setattr(model.model.layers[0].mlp.gate, "top_k", 1), "top_k of layer 0 is 1, but 2"),
        ("qwen3-moe", lambda model: setattr(model.model.layers[0].mlp.gate, "norm_topk_prob", True), "norm_topk_prob"),
        ("gpt-oss", lambda model: setattr(model.model.layers[0].mlp.experts, "limit", 3.0), "limit of layer 0 is 3.0"),
    ],
)
def test_a_layer_that_was_built_or_edited_to_do_otherwise_is_refused(name, edit, message):
    """Transformers asks the layer, and not the config."""
    model = build(BY_NAME[name])
    adopt(model)
    edit(model)
    with pytest.raises(ModelError, match=message):
        adopt(model)


def test_layers_without_experts_have_no_router_to_ask():
    decoder = adopt(build(BY_NAME["qwen3-moe-dense-layers"]))
    kinds = {type(layer.mlp).__name__ for layer in decoder.layers}
    assert kinds == {"GatedMLP", "Experts"}


@pytest.mark.parametrize("count", [0, 9])
@pytest.mark.parametrize("name", ["mixtral", "gpt-oss"])
def test_more_experts_for_a_token_than_there_are_or_none(name, count, tmp_path):
    case = BY_NAME[name]
    model = build(replace(case, config=case.config | {"num_experts_per_tok": count}))
    model.save_pretrained(tmp_path)
    for make in (lambda: AttentionMasker(model), lambda: AttentionMasker.from_pretrained(str(tmp_path), device="cpu")):
        with pytest.raises(ModelError, match=f"every token {count} of . experts; check num_experts_per_tok"):
            make()


def test_models_that_differ_in_any_number_have_different_fingerprints():
    changes = [
        ("gemma-2", {"final_logit_softcapping": 6.0}),
        ("gemma-2", {"attn_logit_softcapping": 3.0}),
        ("mixtral", {"num_experts_per_tok": 1}),
        ("qwen3-moe", {"norm_topk_prob": True}),
        ("granite", {"residual_multiplier": 0.5}),
        ("granite", {"embedding_multiplier": 0.5}),
        ("granite", {"logits_scaling": 0.5}),
        ("gpt-neox", {"use_parallel_residual": False}),
        ("smollm3", {"no_rope_layers": [1, 1, 0]}),
        ("gpt-oss", {"sliding_window": 5}),
    ]
    for name, change in changes:
        case = BY_NAME[name]
        other = replace(case, config=case.config | change)
        assert fingerprint(adopt(build(case))) != fingerprint(adopt(build(other))), (name, change)


def test_a_bias_of_the_unembedding_is_part_of_the_fingerprint():
    model = build(BY_NAME["llama-biases"])
    plain, head = fingerprint(adopt(model)), torch.nn.Linear(48, 97)
    head.weight = model.lm_head.weight
    model.lm_head = head
    assert fingerprint(adopt(model)) != plain
