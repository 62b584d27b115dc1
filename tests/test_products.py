"""Every kernel that may be chosen gives the same product, and packing changes nothing but the speed."""

import numpy as np
import pytest
import torch
from tiny import CASES, build, token_ids

import engine.kernels.products as products
from engine import AttentionMasker
from engine.kernels.projection import Projection

BY_NAME = {case.name: case for case in CASES}


@pytest.fixture
def onednn(monkeypatch):
    monkeypatch.setattr("engine.experiment.CACHED_BYTES", 0)
    monkeypatch.setattr(products, "_fastest_on_cpu", lambda: products._onednn)


@pytest.mark.parametrize("rows", [1, 7, 64, 300])
@pytest.mark.parametrize("joined", [1, 3])
def test_packed_and_plain_products_are_equal(rows, joined, onednn):
    random = torch.Generator().manual_seed(0)
    weights = tuple(torch.randn(40 + i, 24, generator=random) for i in range(joined))
    x = torch.randn(rows, 24, generator=random)
    projection = Projection(weights)
    expected = (x.double() @ torch.cat(weights).double().T).float()
    torch.testing.assert_close(projection(x), expected, rtol=1e-5, atol=1e-5)
    projection.pack({})
    assert len(projection.weights) == 1
    torch.testing.assert_close(projection(x), expected, rtol=1e-5, atol=1e-5)


def test_joined_weights_give_the_same_products():
    random = torch.Generator().manual_seed(0)
    projection = Projection((torch.randn(4, 6, generator=random), torch.randn(5, 6, generator=random)))
    x = torch.randn(3, 6, generator=random)
    expected = projection(x)
    projection.join()
    assert [weight.shape for weight in projection.weights] == [(9, 6)]
    torch.testing.assert_close(projection(x), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_only_float32_is_packed(dtype, onednn):
    weights = (torch.randn(4, 6).to(dtype), torch.randn(5, 6).to(dtype))
    projection = Projection(weights)
    projection.pack({})
    assert projection.weights is weights


@pytest.mark.parametrize("name", ["qwen3", "qwen2", "llama-bias"])
def test_a_settled_masker_gives_the_same_table(name, onednn):
    case = BY_NAME[name]
    model = build(case)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    masker = AttentionMasker(model)
    first, *later = [masker.measure(token_ids(case)).distances for _ in range(3)]
    for distances in later:
        np.testing.assert_allclose(distances, first, rtol=1e-3, atol=1e-7)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_process_set_to_fast_products_still_gets_exact_ones(onednn):
    case = BY_NAME["qwen3"]
    masker = AttentionMasker(build(case))
    expected = masker.measure(token_ids(case)).distances
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        np.testing.assert_array_equal(AttentionMasker(build(case)).measure(token_ids(case)).distances, expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_the_choice_goes_by_the_machine_and_not_by_the_clock(monkeypatch):
    """A machine that is busy with other things must not give other digits."""
    works = products._onednn_works()
    for machine, expected in (("x86_64", works), ("AMD64", works), ("aarch64", False), ("", False)):
        monkeypatch.setattr("platform.machine", lambda machine=machine: machine)
        products._fastest_on_cpu.cache_clear()
        assert (products._fastest_on_cpu() is products._onednn) == expected
    products._fastest_on_cpu.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_around_the_call_changes_nothing(dtype, onednn):
    case = BY_NAME["qwen3"]
    masker = AttentionMasker(build(case))
    expected = masker.measure(token_ids(case)).distances
    with torch.autocast("cpu", dtype=dtype):
        table = AttentionMasker(build(case)).run(token_ids(case))
    assert str(table["l2_distance"].dtype) == "Float32"
    np.testing.assert_array_equal(table["l2_distance"].to_numpy(), expected[..., 0].ravel())


@pytest.mark.parametrize("edit", ["in place", "replaced", "storage", "bias", "norm"])
def test_edits_of_a_held_model_are_seen(edit, onednn):
    case = BY_NAME["qwen3-bias"]
    model = build(case)
    masker = AttentionMasker(model)
    for _ in range(3):
        before = masker.measure(token_ids(case)).distances
    attention = model.model.layers[1].self_attn
    with torch.no_grad():
        if edit == "in place":
            attention.o_proj.weight.mul_(2.0)
        elif edit == "storage":
            attention.o_proj.weight.data = attention.o_proj.weight.data * 2.0
        elif edit == "replaced":
            attention.o_proj.weight = torch.nn.Parameter(attention.o_proj.weight * 2.0)
        else:
            (attention.v_proj.bias if edit == "bias" else attention.q_norm.weight).mul_(2.0)
    after = masker.measure(token_ids(case)).distances
    assert not np.allclose(after, before)
    np.testing.assert_array_equal(after, AttentionMasker(model).measure(token_ids(case)).distances)


def test_an_edit_that_is_refused_stays_refused(onednn):
    """A failed second reading must not leave the first one in use."""
    case = BY_NAME["llama"]
    model = build(case)
    masker = AttentionMasker(model)
    masker.run(token_ids(case))
    q_proj = model.model.layers[1].self_attn.q_proj
    q_proj.weight = torch.nn.Parameter(q_proj.weight.bfloat16())
    for _ in range(2):
        with pytest.raises(ValueError, match="several dtypes"):
            masker.run(token_ids(case))


def test_small_differences_survive_float16():
    """float16 ends at 6e-8; a difference row of 1e-12 must not become 0."""
    weight = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)).half()
    row = torch.full((1, 8), 1e-12)
    torch.testing.assert_close(Projection((weight,))(row), row @ weight.float().T, rtol=1e-2, atol=1e-15)
