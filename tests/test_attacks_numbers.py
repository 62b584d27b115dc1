"""Numbers at their limits: weights that are none, scores that overflow, attention that is all or nothing.

Every cell is right, or null where the definitions leave it undefined, or a ``NumbersError`` says where it went wrong.
"""

import re
from contextlib import suppress

import numpy as np
import pytest
import torch
from attacks import attack
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.naive import run_naive
from benchmarks.oracle import float64_model
from benchmarks.zoo import CASES, build, token_ids
from engine import AttentionMasker
from engine.errors import CheckError, NumbersError

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
@attack("weights with NaN or infinity", quick=25, deep=250)
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
@attack("huge and tiny weights", quick=25, deep=250)
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
