"""The generic route: architectures of many kinds beside the naive way, described families beside the fused route."""

from typing import Any

import numpy as np
import pytest
import torch
from tiny import CASES, build, token_ids
from transformers import AttentionInterface, AttentionMaskInterface

from benchmarks import zoo
from benchmarks.generic_cases import GENERIC_CASES, TOKENS, build_generic
from benchmarks.oracle import NoNarrowing, float64_model
from benchmarks.parity_generic import GenericParity, generic_parity, table_of
from engine import AttentionMasker
from engine.errors import ModelError, NumbersError

BY_NAME = {case.name: case for case in CASES}
GENERIC = {case.name: case for case in GENERIC_CASES}
# (dtype, largest error of logits and streams, of distances, why)
TOLERANCES = [
    (torch.float64, 1e-13, 1e-13, "both ways subtract vectors of float64"),
    (torch.float32, 5e-6, 2e-5, "both ways subtract vectors of float32"),
]
QUESTIONS: list[dict[str, Any]] = [
    {},
    {"query": "all"},
    {"query": [2, 5], "mask": [[0, 1], [2, 4]]},
    {"layers": [0, 2], "tokens": [1, 3]},
    {"heads": [0, 2], "columns": ["attention_mass", "relative_l2"]},
    {"heads": [(1, 3)], "sites": ["MLP", "Resid"]},
    {"intervention": "value-zero", "query": [0, 4]},
    {"intervention": "value-mean", "mask": [[0, 3], [1]]},
]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # older modelling files of transformers
@pytest.mark.parametrize("case", GENERIC_CASES, ids=lambda case: case.name)
@pytest.mark.parametrize(("dtype", "forward", "distance", "why"), TOLERANCES, ids=["float64", "float32"])
def test_other_architectures_equal_the_naive_way(case, dtype, forward, distance, why):
    found = generic_parity(case, dtype=dtype)
    assert max(found.logits, found.streams) < forward, why
    assert max(*found.l2.values(), found.cosine) < distance, why


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_described_families_equal_the_fused_route(case):
    assert_same_on_both_routes(float64_model(build(case)), token_ids(case))


@pytest.mark.parametrize("case", zoo.CASES, ids=lambda case: case.name)
def test_every_family_equals_the_fused_route(case):
    assert_same_on_both_routes(float64_model(zoo.build(case)), zoo.token_ids(case))


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: "-".join(question) or "default")
@pytest.mark.parametrize("name", ["qwen3", "mistral-window", "llama-bias"])
def test_questions_have_the_same_answers_on_both_routes(name, question):
    assert_same_on_both_routes(float64_model(build(BY_NAME[name])), token_ids(BY_NAME[name])[:8], **question)


def assert_same_on_both_routes(model, ids, **question):
    expected = AttentionMasker(model, route="fused").run(ids, **question)
    with NoNarrowing():
        found = AttentionMasker(model, route="generic").run(ids, **question)
    numbers = [name for name, kind in expected.schema.items() if kind.is_float()]
    assert found.drop(numbers).equals(expected.drop(numbers))
    for name in numbers:
        assert found[name].is_null().to_list() == expected[name].is_null().to_list()
        ours, theirs = found[name].fill_null(0.0).to_numpy(), expected[name].fill_null(0.0).to_numpy()
        scale = max(1.0, float(np.abs(theirs).max()))
        np.testing.assert_allclose(ours, theirs, rtol=1e-7, atol=1e-12 * scale, err_msg=name)


def test_a_key_outside_the_window_moves_nothing_at_all():
    impact = AttentionMasker(build_generic(GENERIC["starcoder2"])).measure([*TOKENS])
    assert (impact.distances[:, :4, :, 0] == 0).all()
    assert (impact.distances[:, 4:, :, 0] > 0).all()


def test_many_variants_share_their_sums():
    model, random = float64_model(build(BY_NAME["qwen3-long"])), torch.Generator().manual_seed(3)
    assert_same_on_both_routes(model, torch.randint(0, 97, (80,), generator=random).tolist())


def test_next_tokens_are_those_of_the_model():
    model = build_generic(GENERIC["cohere"])
    impact = AttentionMasker(model).measure([*TOKENS], next_tokens=3, layers=[0])
    expected = model(torch.tensor([TOKENS])).logits[0, -1].softmax(-1).topk(3)
    assert [int(piece) for piece, _ in impact.next_tokens] == expected.indices.tolist()
    np.testing.assert_allclose([p for _, p in impact.next_tokens], expected.values.tolist(), rtol=1e-5)


def test_many_prompts_are_measured_one_by_one():
    masker = AttentionMasker(build_generic(GENERIC["phi"]))
    prompts = {"a": [1, 2, 3], "b": [*TOKENS], "c": [5, 4]}
    for name, table in masker.run_many(prompts):
        assert table.equals(masker.run(prompts[name]))


def test_bfloat16_is_run_as_it_is():
    model = build_generic(GENERIC["phi"])
    wide = AttentionMasker(model).measure([*TOKENS]).distances[..., 0]
    narrow = AttentionMasker(model.to(torch.bfloat16)).measure([*TOKENS]).distances
    assert narrow.dtype == np.float32
    large = wide > 0.2 * wide.max()
    np.testing.assert_allclose(narrow[..., 0][large], wide[large], rtol=0.2)


def test_an_edited_model_is_measured_as_it_is_now():
    model = build_generic(GENERIC["phi"])
    masker = AttentionMasker(model)
    before = masker.run([*TOKENS])
    with torch.no_grad():
        model.model.layers[0].self_attn.dense.weight.mul_(2)
    assert masker.run([*TOKENS]).equals(AttentionMasker(model).run([*TOKENS]))
    assert not masker.run([*TOKENS]).equals(before)


def test_broken_numbers_are_named():
    model = build_generic(GENERIC["phi"])
    masker = AttentionMasker(model)
    model.model.layers[1].mlp.fc2.bias.data[:] = torch.inf
    with pytest.raises(NumbersError, match="layer 1"):
        masker.run([*TOKENS])


def marks(model):
    """All that could be left behind."""
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), m.training) for m in model.modules()]
    flags = [(p.requires_grad, p.grad is None, p._version) for p in model.parameters()]
    configs = [model.config._attn_implementation, model.config._experts_implementation]
    return hooks, flags, configs, sorted(AttentionInterface()), sorted(AttentionMaskInterface())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_nothing_stays_behind(dtype):
    model = build_generic(GENERIC["deepseek_v3"], dtype=dtype).train()
    model.lm_head.eval()
    model.config._experts_implementation = None
    before = marks(model)
    masker = AttentionMasker(model)
    table = masker.run([*TOKENS])
    masker.measure([*TOKENS], next_tokens=2)
    assert marks(model) == before
    assert table.equals(AttentionMasker(model.eval()).run([*TOKENS])), "dropout does not take part"


@pytest.mark.parametrize("name", ["llama-dynamic", "llama-longrope"])
def test_a_model_can_be_trained_afterwards(name):
    model, ids = build(BY_NAME[name]), token_ids(BY_NAME[name])
    AttentionMasker(model, route="generic").measure(ids)
    assert not any(buffer.is_inference() for buffer in model.buffers())
    model(torch.tensor([ids])).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", ["llama-dynamic", "llama-longrope"])
@pytest.mark.parametrize("read", [1, 9, 40], ids="after {} tokens".format)
def test_prompts_that_the_model_has_read_change_nothing(name, read):
    """Its own rope remembers the longest of them, and goes on doing so."""
    model, ids = build(BY_NAME[name]), token_ids(BY_NAME[name])
    fresh = AttentionMasker(build(BY_NAME[name]), route="generic").measure(ids).distances
    model(torch.arange(read)[None])
    rotary = model.model.rotary_emb
    before = {key: value.clone() for key, value in rotary.named_buffers()}, rotary.max_seq_len_cached
    assert np.array_equal(AttentionMasker(model, route="generic").measure(ids).distances, fresh)
    assert AttentionMasker(model, route="fused").checked
    after = dict(rotary.named_buffers()), rotary.max_seq_len_cached
    assert after[1] == before[1]
    assert all(torch.equal(after[0][key], value) for key, value in before[0].items())


@pytest.mark.parametrize("call", range(0, 14, 2))
def test_nothing_stays_behind_when_a_layer_fails(call, monkeypatch):
    model, calls = build_generic(GENERIC["phi"]).train(), []
    before, mlp = marks(model), model.model.layers[1].mlp
    forward = mlp.forward

    def fails(x):
        calls.append(x)
        if len(calls) > call:
            raise RuntimeError("broken on purpose")
        return forward(x)

    monkeypatch.setattr(mlp, "forward", fails)
    with pytest.raises((RuntimeError, ModelError), match="broken on purpose"):
        AttentionMasker(model).measure([*TOKENS], query="all", next_tokens=1)
    assert marks(model) == before


def test_an_abandoned_pass_leaves_nothing_behind():
    model = build_generic(GENERIC["phi"])
    masker, before = AttentionMasker(model), marks(model)

    def stops(layers):
        for layer in layers:
            assert marks(model) == before, "between two layers the model is its owner's"
            yield layer
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        masker.measure([*TOKENS], watch=stops)
    assert marks(model) == before


def test_the_table_of_errors_has_a_line_for_each():
    parity = GenericParity("a", "b", 1e-7, 2e-8, {"full": 1e-16, "attn": 0.0, "heads": 1.0}, 0.5)
    lines = table_of([parity, ("c", "is refused")]).splitlines()
    assert len(lines) == 4
    assert {line.count("|") for line in lines} == {9}
