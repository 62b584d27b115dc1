"""Numbers at their limits: weights that are none, scores that overflow, attention that is all or nothing.

Every cell is right, or null where the definitions leave it undefined, or a ``NumbersError`` says where it went wrong.
"""

import json
import re
from contextlib import suppress
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from attacks import attack
from comparing import assert_same
from hypothesis import given
from hypothesis import strategies as st
from naive_questions import naive_answer

from benchmarks.naive import run_naive
from benchmarks.oracle import float64_model
from benchmarks.zoo import CASES, build, token_ids
from engine import AttentionMasker
from engine.errors import CheckError, ModelError, NumbersError
from engine.kernels.attention import leave_one_out, z_difference
from engine.kernels.norms import RMSNorm
from engine.kernels.scores import softmax
from engine.sweeps.distances import distances

BY_NAME = {case.name: case for case in CASES}
NOT_FINITE = (np.nan, np.inf, -np.inf)
FACTORS = (1e10, 1e18, 1e25, 1e30, 1e36, 0.0, 1e-10, 1e-20, 1e-30, 1e-40)
EXTENTS = ("all", "row", "cell")
ROUTED = [case.name for case in CASES if case.family in ("Qwen3-MoE", "Mixtral", "gpt-oss")]
SAYS_WHERE = re.compile(r"layer \d|final norm")

pytestmark = pytest.mark.usefixtures("one_thread")


def edited(model, name, index, extent, change):
    """Change a weight, in all of it or at one place; the place is counted from the first one, as often as it takes."""
    weight = dict(model.named_parameters())[name].data
    part = {"all": weight, "row": weight[index % len(weight)], "cell": weight.view(-1)[index % weight.numel()]}[extent]
    part.copy_(change(part))
    return model


def measured(model, prompt):
    """The distances, or None for a NumbersError, which has to say where. The self-check may refuse first."""
    with suppress(CheckError):
        AttentionMasker(model)
    try:
        return AttentionMasker(model, check=False).measure(prompt).distances
    except NumbersError as error:
        reason = str(error)
    assert SAYS_WHERE.search(reason), reason
    return None


def assert_right(ours, truth, sizes):
    """L2 within float32's rounding of the vector; cosine within what that does to it; null where the truth is."""
    assert np.array_equal(np.isnan(ours[..., 0]), np.isnan(truth[..., 0]))
    nulls = np.isnan(ours[..., 1]) != np.isnan(truth[..., 1])
    assert not nulls.any(), np.argwhere(nulls)
    l2, cosine = np.moveaxis(np.abs(ours - truth) - 5e-3 * truth, -1, 0)
    assert np.nanmax(l2 - 1e-5 * sizes[:, None] - 1e-37, initial=-1.0) <= 0
    assert np.nanmax(cosine - 1e-4 * np.sqrt(2 * np.clip(truth[..., 1], 0, None)) - 1e-9, initial=-1.0) <= 0


@st.composite
def edits(draw, names, *, biases=True):
    case = BY_NAME[draw(st.sampled_from(names))]
    weights = [name for name, _ in build(case).named_parameters() if biases or not name.endswith("bias")]
    return case, draw(st.sampled_from(weights)), draw(st.integers(0, 1 << 20)), draw(st.sampled_from(EXTENTS))


@given(edit=edits(list(BY_NAME)), number=st.sampled_from(NOT_FINITE))
@attack("weights with NaN or infinity", quick=12, deep=250)
def test_a_weight_that_is_no_number_is_reported_or_matters_nowhere(edit, number):
    case, *where = edit
    model, prompt = build(case), token_ids(case)
    null = np.isnan(AttentionMasker(model).measure(prompt).distances[..., 0])
    edited(model, *where, lambda part: torch.full_like(part, number))
    ours = measured(model, prompt)
    if ours is not None:
        naive = run_naive(float64_model(model), prompt, wide=True)
        assert np.array_equal(np.isnan(naive.distances[..., 0]), null)
        assert_right(ours, naive.distances, naive.sizes)


@given(edit=edits([name for name in BY_NAME if name not in ROUTED], biases=False), factor=st.sampled_from(FACTORS))
@attack("huge and tiny weights", quick=12, deep=250)
def test_huge_and_tiny_weights_give_right_numbers_or_an_error(edit, factor):
    """No biases: what a huge one adds to every key or value is all that float32 then knows of them."""
    case, *where = edit
    model, prompt = edited(build(case), *where, lambda part: part * factor), token_ids(case)
    ours = measured(model, prompt)
    if ours is not None:
        wide = float64_model(model)
        truth, naive = AttentionMasker(wide, check=False).measure(prompt).distances, run_naive(wide, prompt, wide=True)
        assert_right(ours, truth, naive.sizes)
        heads = np.abs(truth - naive.distances)[:, :, 2:, 0] - 1e-8 * naive.sizes[:, None, 2:]
        assert np.nanmax(heads, initial=-1.0) <= 0


@pytest.mark.parametrize("name", ["gemma-2", "olmo-2", "qwen3", "gpt-oss"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_zero_by_definition_has_no_direction(name, dtype):
    """The first query has all its attention on itself; without the value no rounding is left for a norm to lift."""
    model, words = build(BY_NAME[name], dtype=dtype), {"intervention": "value-zero", "query": [0, 5], "tokens": [0]}
    biases = [weight for part, weight in model.named_parameters() if part.endswith("o_proj.bias")]
    for bias in biases:
        bias.data.zero_()
    table = AttentionMasker(model).run(token_ids(BY_NAME[name]), **words)
    first = table.filter((pl.col("query_position") == 0) & (pl.col("variant") != "Full"))
    assert first["cosine_distance"].null_count() == first.height
    assert table.filter(pl.col("query_position") == 5)["cosine_distance"].null_count() == 0


@pytest.mark.parametrize("part", ["v_proj", "o_proj", "down_proj", "embed_tokens", "norm"])
def test_vectors_of_zeros_have_no_cosine_and_no_other_cell_is_empty(part):
    model = build(BY_NAME["qwen3"])
    for name, weight in model.named_parameters():
        if f"{part}." in name or (part == "norm" and name.endswith("input_layernorm.weight")):
            weight.data.zero_()
    table = AttentionMasker(model, check=False).run(token_ids(BY_NAME["qwen3"]))
    assert table["l2_distance"].is_finite().all()
    assert table["cosine_distance"].drop_nulls().is_finite().all()
    empty = {"v_proj": "heads", "norm": "heads", "embed_tokens": "all", "o_proj": "Attn", "down_proj": "none"}[part]
    nulls = set(table.filter(pl.col("cosine_distance").is_null())["variant"].cast(pl.String).unique())
    heads = {"Attn", *(f"Head_{head}" for head in range(4))}
    assert {"heads": heads, "all": heads | {"Full"}, "Attn": {"Attn"}, "none": set()}[empty] <= nulls


@pytest.mark.parametrize("name", ["qwen3", "mistral-window", "gemma-2"])
@pytest.mark.parametrize("length", [9, 70])
def test_tokens_that_are_all_the_same(name, length):
    """They have nearly the same values, so masking one of them changes nearly nothing."""
    case = BY_NAME[name]
    model = build(case if length < 60 else replace(case, config=case.config | {"max_position_embeddings": 96}))
    ours = AttentionMasker(model).measure([5] * length).distances
    tokens = [0, length // 2, length - 1]
    naive = run_naive(float64_model(model), [5] * length, tokens=tokens, wide=True)
    assert_right(ours[:, tokens], naive.distances, naive.sizes)


@pytest.mark.parametrize("length", [9, 70])
def test_a_token_with_all_the_attention(length):
    """Its weight is 1.0 to the last bit of float32, and yet what the others would get is known in all cells."""
    case = replace(BY_NAME["qwen3"], config=BY_NAME["qwen3"].config | {"max_position_embeddings": 96})
    model = build(case)
    for name, weight in model.named_parameters():
        if "q_norm" in name:
            weight.data.mul_(30)
    prompt = np.random.default_rng(0).permutation(97)[:length].tolist()  # two of a kind would have the same values
    masses = AttentionMasker(model).run(prompt, columns=["attention_mass"])["attention_mass"]
    assert (masses == 1.0).any()
    ours, wide = (AttentionMasker(each).measure(prompt).distances for each in (model, float64_model(model)))
    counts = wide > 1e-30  # exp(-87) is the least weight of float32
    assert (np.abs(ours - wide)[counts] / wide[counts]).max() < 5e-3
    assert ours[~counts].max(initial=0.0) < 1e-29


EXTREMES = st.sampled_from((0.0, 1.0, -1.0, 88.0, -104.0, 1e4, -1e4, 1e30, -1e30, 3.4e38, -3.4e38))


@given(data=st.data())
@attack("attention scores at the limits of float32", quick=60, deep=4000)
def test_scores_at_the_limits(data):
    """Both ways to hide one key, and the softmax of all, beside the definition in float64."""
    number = data.draw(st.integers(2, 12))
    scores = torch.tensor(data.draw(st.lists(EXTREMES, min_size=number, max_size=number)))[None, None, None]
    sink = data.draw(st.one_of(st.none(), EXTREMES.map(lambda score: torch.full((1, 1, 1), score))))
    values = torch.randn(1, 1, number, 4, generator=torch.Generator().manual_seed(number))
    hidden, visible = torch.eye(number, dtype=torch.bool)[None, None, :, None], torch.ones(1, 1, 1, number) > 0
    pattern = softmax(scores, sink)
    found = [z_difference(scores, pattern, values, hidden=hidden, sink=sink)]
    found.append(leave_one_out(scores, pattern, values, visible=visible, sink=sink))
    wide, wide_sink = scores.double(), None if sink is None else sink.double()
    after = softmax(torch.where(hidden[0], -torch.inf, wide[0, 0, 0]), wide_sink)
    expected = (after - softmax(wide, wide_sink)).reshape(number, number) @ values[0, 0].double()
    for each in found:
        torch.testing.assert_close(each[0].double(), expected, rtol=1e-5, atol=1e-6)


@given(scale=st.sampled_from((1.0, 30.0, 1e3, 1e5)), name=st.sampled_from(("down_proj", "o_proj", "up_proj", "embed")))
@attack("activations beyond float16", quick=10, deep=16)
def test_activations_beyond_float16_are_right_or_reported(scale, name):
    """The stream is float32; what a product in float16 cannot take is infinite there, and reported."""
    model = build(BY_NAME["llama-biases"])
    for each, weight in model.named_parameters():
        if name in each:
            weight.data.mul_(scale)
    model, prompt = model.to(torch.float16), token_ids(BY_NAME["llama-biases"])
    if any(not weight.isfinite().all() for weight in model.parameters()):
        return
    ours = measured(model, prompt)
    if ours is not None:
        truth = AttentionMasker(model.double(), check=False).measure(prompt).distances
        assert np.isfinite(ours[..., 0]).all()
        assert np.median(np.abs(ours - truth) / truth) < 0.02


def test_a_row_of_the_embedding_that_no_token_asks_for():
    """Read in the layers: the same table; read in the answer: the logits are not finite, and that is said."""
    model, prompt = build(BY_NAME["qwen3"]), [3, 17, 60, 41]
    expected = AttentionMasker(model).run(prompt)
    for row, weight in ((5, model.model.embed_tokens.weight), (6, model.lm_head.weight)):
        weight.data[row] = torch.nan
    assert AttentionMasker(model, check=False).run(prompt).equals(expected)
    with pytest.raises(NumbersError, match="final norm or the unembedding"):
        AttentionMasker(model, check=False).run(prompt, read="output")


def test_layers_behind_those_that_are_asked_for_may_be_broken():
    model, prompt = build(BY_NAME["qwen3"]), token_ids(BY_NAME["qwen3"])
    expected = AttentionMasker(model).run(prompt, layers=[0, 1])
    model.model.layers[2].mlp.down_proj.weight.data.fill_(torch.nan)
    masker = AttentionMasker(model, check=False)
    assert masker.run(prompt, layers=[0, 1]).equals(expected)
    with pytest.raises(NumbersError, match="layer 2"):
        masker.run(prompt)


def test_a_norm_whose_squares_leave_the_dtype_is_no_zero():
    """At 1e20 float32's squares are infinite: a norm of 0 was taken for the truth."""
    norm = RMSNorm(torch.ones(4), torch.tensor(1e-6))
    assert norm(torch.full((1, 4), 1e20)).isnan().all()
    assert torch.equal(norm(torch.full((1, 4), 1e18)), torch.ones(1, 4))
    assert RMSNorm(torch.ones(4), torch.tensor(0.0))(torch.full((1, 4), 1e-30)).isnan().all()


def test_a_token_that_comes_from_no_probability_at_all_to_the_top():
    """exp(-2,000) is 0 in float64 too; its logarithm is not."""
    model = build(BY_NAME["qwen3"])
    model.lm_head.weight.data.mul_(2000)
    prompt, words = token_ids(BY_NAME["qwen3"]), {"read": "output", "cut": "all"}
    wide = float64_model(model)
    ours, theirs = AttentionMasker(wide).run(prompt, **words), naive_answer(wide, prompt, **words)
    assert theirs["kl_divergence"].max() > 1000
    assert_same(ours, theirs)


def test_a_difference_that_dwarfs_its_baseline_has_a_cosine():
    baseline, delta = torch.tensor([[[3e-39, 0.0]]]), torch.tensor([[[0.0, 20.0]]])
    l2, cosine = distances(baseline, delta, torch.tensor([0]))[0, 0].tolist()
    assert (l2, cosine) == (20.0, 1.0)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("smollm3", {"no_rope_layers": [1]}),
        ("granite", {"logits_scaling": 0}),
        ("granite", {"attention_multiplier": float("nan")}),
        ("gemma-2", {"query_pre_attn_scalar": 0}),
        ("gemma-2", {"query_pre_attn_scalar": -4}),
        ("gemma-2", {"attn_logit_softcapping": 0.0}),
        ("gemma-2", {"final_logit_softcapping": 0.0}),
        ("gemma-2", {"sliding_window": None}),
        ("mistral-window", {"sliding_window": -3}),
        ("gpt-oss", {"sliding_window": 0}),
        ("qwen3-moe", {"decoder_sparse_step": 0}),
        ("qwen3", {"rms_norm_eps": -1.0}),
    ],
)
def test_a_config_with_which_no_model_can_be_computed_names_its_field(name, changes, tmp_path):
    build(BY_NAME[name]).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ModelError, match=next(iter(changes))):
        AttentionMasker.from_pretrained(str(tmp_path), device="cpu", route="fused")
    model = build(BY_NAME[name])
    for field, value in changes.items():
        setattr(model.config, field, value)
    with pytest.raises(ModelError, match=next(iter(changes))):
        AttentionMasker(model, route="fused")
