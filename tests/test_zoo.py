"""The tiny models prove something: each of their weights matters. And the slow twin is Hugging Face's eager forward."""

import numpy as np
import polars as pl
import pytest
import torch
from naive_questions import SIZE, naive_answer
from twin_forward import look, with_plain_attention

from benchmarks.naive import naive_table, run_naive
from benchmarks.oracle import float64_model
from benchmarks.zoo import CASES, build, token_ids

pytestmark = pytest.mark.usefixtures("one_thread")
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def is_without_effect(model, name):
    """A bias of keys that are not rotated shifts all scores of a query alike."""
    rotated = getattr(model.config, "no_rope_layers", None)
    return name.endswith("k_proj.bias") and rotated is not None and not rotated[int(name.split(".")[2])]


@every_case
@torch.inference_mode()
def test_every_weight_matters(case):
    model, other, prompt = build(case), build(case, seed=1), torch.tensor([token_ids(case)])
    before, weights = model(prompt).logits.clone(), dict(other.named_parameters())
    for name, parameter in model.named_parameters():
        own = parameter.clone()
        parameter.copy_(weights[name])
        change = float((model(prompt).logits - before).abs().max() / before.abs().max())
        assert (change > 1e-3) != is_without_effect(model, name), name
        parameter.copy_(own)


@every_case
def test_the_twin_is_the_eager_model(case):
    model, ids = float64_model(build(case)), token_ids(case)
    with torch.inference_mode():
        theirs = model(torch.tensor([ids]), output_hidden_states=True, use_cache=False)
    seen = look(with_plain_attention(model), ids)
    torch.testing.assert_close(seen.logits, theirs.logits[0], rtol=1e-13, atol=1e-13)
    for shown, stream in zip(seen.layers, theirs.hidden_states, strict=False):
        torch.testing.assert_close(shown["before"], stream[0], rtol=1e-13, atol=1e-13)
        both = shown["before"] + shown["attn_out"] + shown["mlp_out"]
        torch.testing.assert_close(both, shown["after"], rtol=1e-13, atol=1e-13)


@every_case
def test_the_twin_gives_the_table_of_the_naive_way(case):
    """Attention from its definition, and transformers' own under a mask of -inf."""
    model, ids = float64_model(build(case)), token_ids(case)
    twin, naive = naive_answer(model, ids), naive_table(run_naive(model, ids))
    assert (
        twin.drop(SIZE).select(twin.columns[:4]).rows()
        == naive.with_columns(pl.col("variant").cast(pl.String)).select(naive.columns[:4]).rows()
    )
    for column in ("l2_distance", "cosine_distance"):
        found, expected = (table[column].cast(pl.Float64).fill_null(np.nan) for table in (twin, naive))
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-13)


@every_case
def test_attention_is_neither_uniform_nor_on_one_token(case):
    patterns = [shown["pattern"][:, -1] for shown in look(with_plain_attention(build(case)), token_ids(case)).layers]
    largest = torch.cat([pattern.amax(-1) for pattern in patterns])
    assert float(largest.min()) < 0.9
    assert any(float(pattern[pattern > 0].min()) < 0.5 * float(pattern.max()) for pattern in patterns)
