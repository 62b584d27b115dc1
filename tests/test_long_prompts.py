"""Ten thousand tokens: sane in time and memory, and right in cells that transformers computes from a cache."""

import inspect
import resource
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from benchmarks.zoo import CASES, build
from engine import AttentionMasker

LENGTH = 10_000
TOKENS = [0, 1, 4321, 7001, 9998, 9999]
CHANGES = {"max_position_embeddings": LENGTH, "num_hidden_layers": 2, "sliding_window": 3000}
BY_NAME = {case.name: case for case in CASES}

pytestmark = pytest.mark.usefixtures("one_thread")


def long_model(name):
    return build(replace(BY_NAME[name], config=BY_NAME[name].config | CHANGES))


def long_prompt():
    return np.random.default_rng(0).integers(0, 97, LENGTH).tolist()


def peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@pytest.mark.parametrize("name", ["qwen3", "mistral-window"])
def test_time_and_memory_are_sane_and_parts_are_the_whole(name):
    masker, held, started = AttentionMasker(long_model(name)), peak_bytes(), time.process_time()
    whole = masker.measure(long_prompt()).distances
    assert time.process_time() - started < 60
    assert peak_bytes() - held < 1 << 30
    assert np.isfinite(whole[..., 0]).all()
    if name == "mistral-window":
        assert not whole[:, : LENGTH - 3000].any()
    part = masker.measure(long_prompt(), tokens=TOKENS).distances
    np.testing.assert_allclose(part, whole[:, TOKENS], rtol=1e-3, atol=1e-12)


def test_sampled_cells_are_those_of_transformers():
    """What the attention of the last token adds, with one key hidden from it, over the cached keys of all others."""
    model = long_model("qwen3")
    ours = AttentionMasker(model).measure(long_prompt(), tokens=TOKENS).distances[:, :, 1, 0]
    expected = [[cell(layer, token) for token in TOKENS] for cell in [cached(model.double())] for layer in range(2)]
    np.testing.assert_allclose(ours, expected, rtol=2e-3, atol=1e-9)


def cached(model):
    """(layer, token) -> L2 distance of Attn, each from a forward of the last token alone."""
    model.set_attn_implementation("sdpa")
    prompt, cache = torch.tensor([long_prompt()]), DynamicCache()
    names = inspect.signature(model.base_model.forward).parameters
    known = {"cache" if "cache" in names else "past_key_values": cache}  # renamed by transformers 5.24
    with torch.inference_mode():
        model.base_model(prompt[:, :-1], **known, use_cache=True)

    @torch.inference_mode()
    def added(layer, hidden):
        mask, seen = torch.zeros(1, 1, 1, LENGTH, dtype=torch.float64), []
        if hidden is not None:
            mask[..., hidden] = -torch.inf
        attention = model.model.layers[layer].self_attn
        hooks = [
            attention.register_forward_pre_hook(lambda _, a, k: (a, {**k, "attention_mask": mask}), with_kwargs=True)
        ]
        hooks.append(attention.register_forward_hook(lambda _, __, out: seen.append(out[0][0, -1])))
        model.base_model(prompt[:, -1:], **known, use_cache=True)
        cache.crop(-1)
        for hook in hooks:
            hook.remove()
        return seen[0]

    return lambda layer, token: float((added(layer, token) - added(layer, None)).norm())
