"""The engine against Hugging Face: logits and every layer's stream, and the whole table against the naive way."""

import numpy as np
import pytest
import torch
from tiny import CASES, build, token_ids

from benchmarks.naive import naive_table, run_naive
from benchmarks.oracle import float64_model
from engine import AttentionMasker
from engine.kernels.batches import make_batch
from engine.sweeps.sweep import sweep
from engine.text.knockouts import single_tokens

# (dtype of the run, rtol, atol as a share of the largest value, why)
FORWARD_TOLERANCES = [
    (torch.float64, 1e-11, 1e-12, "rounding of float64 through three layers"),
    (torch.float32, 1e-4, 1e-5, "rounding of float32 through three layers"),
    (
        torch.bfloat16,
        5e-2,
        1e-1,
        "8 bits in the products; transformers keeps the stream in bfloat16, the engine in float32",
    ),
]
# (distance, rtol, resolution as a share of the baseline vector, why)
TABLE_TOLERANCES = [
    (0, 1e-6, 1e-13, "the naive way subtracts in float64"),
    (1, 1e-5, 1e-14, "1 - cos in float64 resolves nothing below"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize(("dtype", "rtol", "atol", "why"), FORWARD_TOLERANCES, ids=["float64", "float32", "bfloat16"])
def test_streams_and_logits_equal_hugging_face(case, dtype, rtol, atol, why):
    model = build(case)
    model = float64_model(model) if dtype == torch.float64 else model.to(dtype)
    ids = token_ids(case)
    masker = AttentionMasker(model)
    with torch.inference_mode():
        theirs = model(torch.tensor([ids]), output_hidden_states=True, use_cache=False)
        batch = make_batch([ids], [single_tokens(len(ids), [0])], torch.device("cpu"))
        readouts = list(sweep(masker.decoder, batch, layers=range(len(masker.decoder.layers))))
        logits = masker.decoder.logits(readouts[-1].residual)
    for readout, stream in zip(readouts[:-1], theirs.hidden_states[1:-1], strict=True):
        assert_near(readout.residual, stream[0], rtol, atol, why)
    assert_near(logits[0], theirs.logits[0, -1], rtol, atol, why)


def assert_near(ours, theirs, rtol, atol, why):
    theirs = theirs.to(ours.dtype)
    torch.testing.assert_close(
        ours, theirs, rtol=rtol, atol=atol * float(theirs.abs().max()), msg=lambda m: f"{m}\n{why}"
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_table_equals_the_naive_one(case):
    model = float64_model(build(case))
    ids = token_ids(case)
    naive = run_naive(model, ids, wide=True)
    impact = AttentionMasker(model).measure(ids)
    for metric, rtol, resolution, why in TABLE_TOLERANCES:
        scale = naive.sizes[:, None] if metric == 0 else np.ones((1, 1, 1))
        ours, theirs = impact.distances[..., metric], naive.distances[..., metric]
        assert np.array_equal(np.isnan(ours), np.isnan(theirs)), "undefined cells differ"
        error = np.abs(ours - theirs) - (rtol * np.abs(theirs) + resolution * scale)
        assert np.nanmax(error) <= 0, why


@pytest.mark.parametrize("case", [CASES[0], CASES[7]], ids=lambda case: case.name)
def test_polars_table_equals_the_naive_table(case):
    model = float64_model(build(case))
    ids = token_ids(case)
    ours, theirs = AttentionMasker(model).run(ids), naive_table(run_naive(model, ids, wide=True))
    assert ours.columns == theirs.columns
    coordinates = ours.columns[:3]
    assert ours.select(coordinates).rows() == theirs.select(coordinates).rows()
    assert ours["variant"].cast(str).to_list() == theirs["variant"].cast(str).to_list()
    for column in ("l2_distance", "cosine_distance"):
        np.testing.assert_allclose(ours[column], theirs[column], rtol=1e-5, atol=1e-11)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_float32_differs_from_float64_by_rounding_alone(case):
    model, ids = build(case), token_ids(case)
    narrow = AttentionMasker(model).measure(ids).distances
    wide = AttentionMasker(float64_model(model)).measure(ids).distances
    assert narrow.dtype == np.float32
    assert np.array_equal(np.isnan(narrow), np.isnan(wide))
    moved = wide > 0
    assert (narrow[wide == 0] == 0).all(), "a key that nothing sees moves nothing"
    relative = np.abs(narrow - wide)[moved] / wide[moved]
    assert not relative.size or np.quantile(relative, 0.99) < 1e-3
