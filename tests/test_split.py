"""Products of bfloat16 terms are float32 products, whatever the size of the rows, and so is a whole table."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import CASES, build, token_ids

from benchmarks.oracle import float64_model
from engine import AttentionMasker
from engine.kernels.products import exact_products
from engine.kernels.projection import Projection
from engine.kernels.split import bfloat16_terms, product_of_terms, splits

BY_NAME = {case.name: case for case in CASES}
CPU = torch.device("cpu")


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative_error(product, rows, weight):
    """The size of the error of each row's product, over the size of the product; the largest of all rows."""
    exact = rows.double() @ weight.double().T
    return float(((product.double() - exact).norm(dim=1) / exact.norm(dim=1)).max())


def split_error(rows, weight, *, count=3):
    product = product_of_terms(bfloat16_terms(rows, count=count), weight)
    assert product.dtype == torch.float32
    return relative_error(product, rows, weight)


def plain_error(rows, weight):
    return relative_error(rows @ weight.float().T, rows, weight)


@pytest.mark.parametrize(
    ("count", "least", "most"), [(1, 1e-3, 3e-3), (2, 1e-6, 4e-6), (3, 1e-8, 2e-7)], ids=["1", "2", "3"]
)
def test_error_of_one_two_and_three_terms(count, least, most):
    rows, weight = drawn(64, 256), drawn(96, 256, seed=1).bfloat16()
    assert least < split_error(rows, weight, count=count) < most
    assert count < 3 or split_error(rows, weight, count=count) < plain_error(rows, weight)


def test_three_terms_hold_every_bit():
    away_from_zero = drawn(1000) + drawn(1000).sign()
    rows = away_from_zero * 10.0 ** torch.arange(-32, 38)[:, None]
    terms = bfloat16_terms(rows)
    assert terms.dtype == torch.bfloat16
    assert torch.equal(terms.double().sum(0), rows.double())


def test_rows_of_every_size_keep_float32s_accuracy():
    rows, weight = drawn(61, 128), drawn(20, 128, seed=1).bfloat16()
    rows *= 10.0 ** torch.arange(-30, 31)[:, None]
    assert split_error(rows, weight) < plain_error(rows, weight)


@pytest.mark.parametrize("reached", [True, False])
def test_a_huge_channel_rounds_as_in_float32(reached):
    """Even where its weight is 0: what the huge channel does not reach is not disturbed by it."""
    rows, weight = drawn(16, 128), drawn(20, 128, seed=1).bfloat16()
    rows[:, 5] *= 1e6
    weight[:, 5] *= reached
    assert split_error(rows, weight) < 1.5 * plain_error(rows, weight)


def test_zero_rows_give_zero():
    rows, weight = drawn(5, 16), drawn(4, 16, seed=1).bfloat16()
    rows[2] = 0
    assert torch.equal(Projection((weight,), split=True)(rows)[2], torch.zeros(4))
    assert Projection((weight,), split=True)(rows[:0]).shape == (0, 4)


def test_the_smallest_numbers_lose_what_bfloat16_lacks_and_no_more():
    rows = torch.cat([drawn(4, 64) * 1e-36, drawn(4, 64) * 1e-39, torch.full((1, 64), 1e-45)])
    lost = bfloat16_terms(rows).double().sum(0) - rows.double()
    assert lost.abs().max() <= 2.0**-134, "half of bfloat16's smallest number"


@pytest.mark.parametrize("number", [torch.inf, -torch.inf, torch.nan, 3.4e38])
def test_numbers_that_bfloat16_lacks_are_never_finite(number):
    assert not Projection((torch.ones(1, 2).bfloat16(),), split=True)(torch.tensor([[number, 1.0]])).isfinite().any()


def test_a_projection_splits_once_for_all_its_weights():
    weights = tuple(drawn(5 + i, 24, seed=i).bfloat16() for i in range(3))
    rows, bias = drawn(7, 24, seed=9), drawn(18, seed=10)
    expected = Projection(tuple(w.float() for w in weights), bias)(rows)
    split = Projection(weights, bias, split=True)
    torch.testing.assert_close(split(rows), expected, rtol=2e-6, atol=2e-6)
    coarse = Projection(weights, bias)(rows)
    assert (coarse - expected).abs().max() > 1e-3, "without it, products are rounded to bfloat16"


def test_only_bfloat16_weights_are_split():
    with pytest.raises(AssertionError):
        Projection((drawn(3, 4),), split=True)


def test_where_a_checkpoint_is_kept_as_stored(monkeypatch):
    stored, asked, gpu = torch.bfloat16, torch.float32, torch.device("cuda")
    monkeypatch.setattr("engine.kernels.split._has_kernel", lambda device: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert splits(gpu, stored=stored, asked=asked)
    assert not splits(CPU, stored=stored, asked=asked)
    assert not splits(gpu, stored=torch.float32, asked=asked)
    assert not splits(gpu, stored=stored, asked=torch.bfloat16)
    assert not splits(gpu, stored=stored, asked=torch.float64)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert not splits(gpu, stored=stored, asked=asked)


def test_a_device_without_the_kernel_is_found_out():
    from engine.kernels.split import _has_kernel

    assert not _has_kernel(CPU)


def test_partial_sums_stay_wide_for_as_long_as_it_matters():
    settings = torch.backends.cuda.matmul
    for allowed in (True, False):
        settings.allow_bf16_reduced_precision_reduction = allowed
        with exact_products(CPU):
            assert not settings.allow_bf16_reduced_precision_reduction
        assert settings.allow_bf16_reduced_precision_reduction == allowed
    settings.allow_bf16_reduced_precision_reduction = True


def as_stored(case, **kwargs):
    """The case with bfloat16 values: in float32, and in bfloat16 but for its rotary tables."""
    wide, narrow = (build(case, **kwargs) for _ in range(2))
    for p, q in zip(wide.parameters(), narrow.parameters(), strict=True):
        q.data = q.data.bfloat16()
        p.data = q.data.float()
    return wide, narrow


def split_masker(model):
    masker = AttentionMasker(model)
    masker.decoder.split_products()
    return masker


@pytest.mark.parametrize("name", ["qwen3", "qwen2-window", "llama-bias", "mistral-window", "qwen3-long"])
@pytest.mark.parametrize("sharpness", [1.0, 3.0])
def test_a_split_table_is_a_float32_table(name, sharpness):
    case = BY_NAME[name]
    wide, narrow = as_stored(case, sharpness=sharpness)
    ids = token_ids(case)
    truth = AttentionMasker(float64_model(wide)).measure(ids).distances
    plain = AttentionMasker(wide).measure(ids).distances
    split = split_masker(narrow).measure(ids).distances
    assert split.dtype == np.float32
    assert np.array_equal(np.isnan(split), np.isnan(truth))
    moved = truth > 0
    assert (split[truth == 0] == 0).all()
    errors = {name: np.abs(x - truth)[moved] / truth[moved] for name, x in {"plain": plain, "split": split}.items()}
    p99 = {name: np.quantile(error, 0.99) for name, error in errors.items()}
    assert p99["split"] < 1e-3
    assert p99["split"] < 3 * p99["plain"]


def test_next_tokens_of_split_weights_are_those_of_float32():
    case = BY_NAME["qwen3"]
    wide, narrow = as_stored(case)
    ids = token_ids(case)
    tokens, chances = zip(*AttentionMasker(wide).measure(ids, next_tokens=5).next_tokens, strict=True)
    split, split_chances = zip(*split_masker(narrow).measure(ids, next_tokens=5).next_tokens, strict=True)
    assert split == tokens
    np.testing.assert_allclose(split_chances, chances, rtol=1e-5)


def test_a_bfloat16_checkpoint_keeps_its_matrices_where_splitting_pays(tmp_path, monkeypatch):
    """Norms stored wider stay so, and the table is that of float32."""
    model = build(BY_NAME["qwen3"], dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    norms = {name: tensor.float() + 1e-4 for name, tensor in stored.items() if tensor.ndim == 1}
    save_file(stored | norms, tmp_path / "model.safetensors", metadata={"format": "pt"})
    ids = token_ids(BY_NAME["qwen3"])
    expected = AttentionMasker.from_pretrained(tmp_path, device="cpu").measure(ids).distances
    monkeypatch.setattr("engine.model.checkpoints.splits", lambda device, *, stored, asked: stored == torch.bfloat16)
    masker = AttentionMasker.from_pretrained(tmp_path, device="cpu")
    assert {weight.dtype for part in masker.decoder.projections() for weight in part.weights} == {torch.bfloat16}
    assert all(part.split for part in (*masker.decoder.projections(), masker.decoder.unembedding.projection))
    np.testing.assert_allclose(masker.measure(ids).distances, expected, rtol=1e-3, atol=1e-6)
