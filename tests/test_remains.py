"""A knockout can leave next to nothing of a head; the direction of what is left keeps its digits all the same."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from comparing import assert_same
from naive_questions import naive_answer

from benchmarks.naive import run_naive
from benchmarks.oracle import float64_model
from benchmarks.zoo import CASES, build
from engine import AttentionMasker
from engine.runs import trips
from engine.sweeps.distances import distances
from engine.sweeps.travelling import travel
from engine.sweeps.variants import Variants

CASE = next(case for case in CASES if case.family == "gpt-oss")
PLAIN = next(case for case in CASES if case.family == "Qwen3")


def filled(length, sink):
    """A model whose heads lie with one key or with the sink, and a prompt that repeats a token before nine others."""
    sizes = {"sliding_window": 1000, "max_position_embeddings": 128}
    model = build(replace(CASE, config=CASE.config | sizes, length=length))
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.mul_(10.0)
            layer.self_attn.k_proj.weight.mul_(10.0)
            layer.self_attn.sinks.fill_(sink)
    others = np.random.default_rng(5).integers(0, model.config.vocab_size, 9)
    return model, [63] * (length - 9) + others.tolist()


def peaked():
    """A model whose heads lie with one key each."""
    model = build(PLAIN)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_norm.weight.mul_(30.0)
    return model


@pytest.mark.parametrize("share", [0.4, 1e-3, 1e-7, 1e-20, 1e-30])
def test_what_is_left_has_its_own_direction(share):
    generator = torch.Generator().manual_seed(1)
    baseline, rest = torch.randn(2, 5, 3, 16, generator=generator)
    left = rest * share
    found = distances(baseline, left - baseline, torch.arange(5), left)
    cosine = torch.nn.functional.cosine_similarity(baseline.double(), left.double() / share, dim=-1)
    torch.testing.assert_close(found[..., 1].double(), 1 - cosine, rtol=1e-5, atol=1e-6)
    none = distances(baseline, -baseline, torch.arange(5), torch.zeros_like(left))
    assert none[..., 1].isnan().all(), "nothing has no direction"


@pytest.mark.parametrize("route", ["fused", "generic"])
@pytest.mark.parametrize(("length", "sink"), [(9, 30.0), (70, 120.0)], ids=["short", "long"])
def test_heads_that_lose_nearly_all_keep_their_cosines(length, sink, route, monkeypatch):
    model, prompt = filled(length, sink)
    wide = float64_model(model)
    masker, naive = AttentionMasker(wide, route=route), run_naive(wide, prompt, wide=True).distances[:, :, 2:]
    ours = masker.measure(prompt).distances[:, :, 2:]
    np.testing.assert_allclose(ours[..., 1], naive[..., 1], rtol=1e-7, atol=1e-9)
    monkeypatch.setattr(Variants, "left", lambda *_, **__: None)
    as_sums = masker.measure(prompt).distances[:, :, 2:]
    assert not np.allclose(as_sums[..., 1], naive[..., 1], rtol=0, atol=1e-3), "the case shows what it is about"


@pytest.mark.parametrize("intervention", ["value-zero", "value-mean"])
def test_heads_that_lose_nearly_all_values_keep_their_cosines(intervention, monkeypatch):
    wide, prompt = float64_model(peaked()), list(range(3, 12))
    words = {"intervention": intervention, "sites": ["Result_h"]}
    masker, theirs = AttentionMasker(wide), naive_answer(wide, prompt, **words)
    assert_same(masker.run(prompt, **words), theirs)
    monkeypatch.setattr(Variants, "left", lambda *_, **__: None)
    if intervention == "value-zero":
        with pytest.raises(AssertionError, match="cosine_distance"):
            assert_same(masker.run(prompt, **words), theirs)


@pytest.mark.parametrize("intervention", ["mask", "value-zero", "value-mean"])
def test_heads_that_lose_nearly_all_keep_their_cosines_where_effects_travel(intervention, monkeypatch):
    model, prompt = filled(9, 30.0) if intervention == "mask" else (peaked(), list(range(3, 12)))
    wide = float64_model(model)
    words = {"cut": "all", "intervention": intervention, "query": [5, 8], "sites": ["Result_h"]}
    masker, theirs = AttentionMasker(wide), naive_answer(wide, prompt, **words)
    assert_same(masker.run(prompt, **words), theirs)
    monkeypatch.setattr(trips, "travel", lambda *args, queries, **more: travel(*args, **more))
    if intervention != "value-mean":
        with pytest.raises(AssertionError, match="cosine_distance"):
            assert_same(masker.run(prompt, **words), theirs)


def test_heads_that_are_not_cut_are_as_they_were():
    model, prompt = filled(9, 30.0)
    whole, some = (AttentionMasker(model).run(prompt, **words) for words in ({}, {"heads": [1]}))
    kept = some.join(whole, on=("layer", "token_position", "variant"), how="left", suffix="_whole")
    head = kept.filter(variant="Head_1")
    assert head["cosine_distance"].equals(head["cosine_distance_whole"])
    assert (kept.filter(variant="Head_0")["l2_distance"] == 0).all()
    assert (kept.filter(variant="Head_0")["cosine_distance"] == 0).all()
