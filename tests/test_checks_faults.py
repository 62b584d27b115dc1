"""Faults that a short prompt hardly shows, and that the self-check must find all the same."""

import copy
from dataclasses import replace

import pytest
import torch
from test_checks import FAULTS
from tiny import CASES, Case, build

import engine.checks.selfcheck
import engine.kernels.masks
import engine.kernels.projection
import engine.sweeps.sweep
import engine.sweeps.variants
from benchmarks.zoo import CASES as ZOO
from benchmarks.zoo import build as build_zoo
from engine import AttentionMasker
from engine.checks.selfcheck import self_check
from engine.errors import CheckError
from engine.model.loading import load_view

LONG_WINDOW = {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1}


def loaded(model, folder, **choices):
    model.save_pretrained(folder)
    return load_view(folder, device="cpu", **choices)[0]


def tiny(folder, architecture="Qwen3ForCausalLM", **config):
    return loaded(build(Case("", architecture, config)), folder)


def with_window(decoder, index, window):
    def changed(layer):
        return replace(layer, attention=replace(layer.attention, window=window))

    layers = (changed(layer) if at == index else layer for at, layer in enumerate(decoder.layers))
    return replace(decoder, layers=tuple(layers))


@pytest.mark.parametrize(("layer", "window"), [(0, 20), (1, None), (2, 19), (2, 21), (2, None)])
def test_a_window_longer_than_the_probe_is_found(tmp_path, layer, window):
    decoder = tiny(tmp_path, **LONG_WINDOW)
    assert self_check(decoder, None)
    with pytest.raises(CheckError, match=rf"failed in layer {layer}: the keys that a query at position 63 sees"):
        self_check(with_window(decoder, layer, window), None)


def test_the_window_of_streamed_layers_is_found(tmp_path):
    decoder = loaded(build(Case("", "Qwen3ForCausalLM", LONG_WINDOW)), tmp_path, stream=True)
    assert self_check(decoder, None)
    sights = (*decoder.sights[:1], *(replace(sight, window=19) for sight in decoder.sights[1:]))
    with pytest.raises(CheckError, match=r"failed in layer 1: the keys that a query at position 63 sees"):
        self_check(replace(decoder, sights=sights), None)


def test_a_convention_of_windows_that_is_off_by_one_is_found(tmp_path, monkeypatch):
    right = engine.kernels.masks.visible_keys

    def wider(query, num_keys, window):
        return right(query, num_keys, None if window is None else window + 1)

    monkeypatch.setattr(engine.kernels.masks, "visible_keys", wider)
    monkeypatch.setattr(engine.checks.selfcheck, "visible_keys", wider)
    with pytest.raises(CheckError, match="sees differ"):
        self_check(tiny(tmp_path, **LONG_WINDOW), None)


@pytest.mark.parametrize("key", range(1, 7))
def test_a_mask_on_the_wrong_key_is_found(tmp_path, monkeypatch, key):
    """For one key alone: each layer hides another one."""
    right = engine.sweeps.sweep.masked_copies

    def to_the_left(*args, **kwargs):
        copies = right(*args, **kwargs)
        masks, hidden, column = copies.masks.clone(), copies.hidden.clone(), copies.num_baseline + key
        for heads in masks[0].split(len(copies.queries), dim=1):
            heads[key, column], heads[key - 1, column] = 0, -torch.inf
        hidden[key, 0, key], hidden[key - 1, 0, key] = 0, 1
        return replace(copies, masks=masks, hidden=hidden)

    decoder = tiny(tmp_path, num_hidden_layers=8)
    assert self_check(decoder, None)
    monkeypatch.setattr(engine.sweeps.sweep, "masked_copies", to_the_left)
    with pytest.raises(CheckError, match=f"failed in layer {key}: the changes by a mask of the heads' outputs"):
        self_check(decoder, None)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("where", "kernel"), [("sweep", "causal_z"), ("variants", "z_difference"), ("variants", "leave_one_out")]
)
def test_the_kernels_of_longer_prompts_are_checked(tmp_path, monkeypatch, where, kernel, stream):
    decoder = loaded(build(CASES[0]), tmp_path, stream=stream)
    module = getattr(engine.sweeps, where)
    right = getattr(module, kernel)
    monkeypatch.setattr(module, kernel, lambda *args, **kwargs: 1.1 * right(*args, **kwargs))
    with pytest.raises(CheckError, match=r"failed in layer 0: .* by the kernel of long(er)? prompts"):
        self_check(decoder, None)


@pytest.mark.parametrize("pair", [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)])
def test_swapped_experts_are_found(tmp_path, pair):
    decoder = loaded(build_zoo(next(case for case in ZOO if case.name == "mixtral")), tmp_path)
    assert self_check(decoder, None)
    layer = decoder.layers[1]
    experts = list(layer.mlp.experts)
    one, other = pair
    experts[one], experts[other] = experts[other], experts[one]
    wrong = replace(layer, mlp=replace(layer.mlp, experts=experts))
    with pytest.raises(CheckError, match="failed in layer 1"):
        self_check(replace(decoder, layers=(decoder.layers[0], wrong, *decoder.layers[2:])), None)


@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe", "gpt-oss"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tie_between_experts_is_no_fault(name, dtype):
    """Either of two equals may be chosen."""
    model = build_zoo(next(case for case in ZOO if case.name == name))
    with torch.no_grad():
        for parameter, weight in model.named_parameters():
            if parameter.endswith(("gate.weight", "router.weight", "router.bias")):
                weight[1::2] = weight[::2] * (1 + 1e-7)
    assert AttentionMasker(model.to(dtype)).checked


@pytest.mark.parametrize("stream", [False, True])
def test_rows_of_a_large_vocabulary_are_compared(tmp_path, stream):
    config = {"vocab_size": 5000, "tie_word_embeddings": False}
    decoder = loaded(build(Case("", "Qwen3ForCausalLM", config)), tmp_path, stream=stream)
    assert self_check(decoder, None)
    if not stream:
        projection = copy.copy(decoder.unembedding.projection)
        (weight,) = projection.weights
        projection.weights = (torch.cat((weight[:3000], weight[3000:].roll(1, 0))),)
        with pytest.raises(CheckError, match="the logits differ"):
            self_check(replace(decoder, unembedding=replace(decoder.unembedding, projection=projection)), None)


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "window"])
def test_rounding_is_no_excuse(fault):
    """Products in bfloat16 are known to a fifth; the layers around them are not."""
    decoder, _ = load_view(None, device="cpu", dtype="bfloat16")
    assert self_check(decoder, None)
    with pytest.raises(CheckError, match="failed in layer 2"):
        self_check(FAULTS[fault](decoder), None)


def test_narrow_products_are_checked_as_they_are(monkeypatch):
    """A kernel that is wrong in bfloat16 alone."""
    decoder, _ = load_view(None, device="cpu", dtype="bfloat16")
    right = engine.kernels.projection.multiply

    def wrong(rows, weight):
        return right(rows, weight) * (3 if weight.dtype == torch.bfloat16 else 1)

    monkeypatch.setattr(engine.kernels.projection, "multiply", wrong)
    with pytest.raises(CheckError, match=r"failed in layer 0: .* by the kernel of short prompts"):
        self_check(decoder, None)
