"""What must hold without any reference: identities of the measured quantities, and independence of how they are run."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import CASES, build, token_ids

from benchmarks.oracle import float64_model
from engine import AttentionMasker
from engine.kernels.attention import query_scores
from engine.kernels.batches import make_batch
from engine.kernels.masks import visible_keys
from engine.sweeps.distances import measure_readouts
from engine.sweeps.readout import Limits
from engine.sweeps.sweep import sweep
from engine.text.knockouts import Knockouts, single_tokens

BY_NAME = {case.name: case for case in CASES}
LOCAL = ["qwen3", "qwen3-window", "qwen2", "llama-bias", "mistral-window"]


@pytest.fixture(params=LOCAL)
def case(request):
    return BY_NAME[request.param]


@pytest.fixture
def masker(case):
    return AttentionMasker(float64_model(build(case)))


def readouts_of(masker, prompts, knockouts, **options):
    batch = make_batch(prompts, knockouts, torch.device("cpu"))
    with torch.inference_mode():
        return batch, list(sweep(masker.decoder, batch, layers=range(len(masker.decoder.layers)), **options))


def test_the_stream_is_the_sum_of_what_the_layers_add(case, masker):
    ids = token_ids(case)
    _, readouts = readouts_of(masker, [ids], [single_tokens(len(ids), None)])
    entering = masker.decoder.embed(torch.tensor(ids), torch.arange(len(ids)))[-1]
    for readout in readouts:
        leaving = readout.residual[-1]
        torch.testing.assert_close(entering + readout.sites[0].baseline[0], leaving, rtol=1e-11, atol=1e-11)
        entering = leaving


def test_z_through_the_projection_is_the_attention_output(case, masker):
    ids = token_ids(case)
    _, readouts = readouts_of(masker, [ids], [single_tokens(len(ids), None)])
    for readout, layer in zip(readouts, masker.decoder.layers, strict=True):
        projected = layer.attention.output(readout.sites[2].baseline)
        torch.testing.assert_close(projected[0], readout.sites[1].baseline[0])
        moved = layer.attention.output.product(readout.sites[2].delta)
        torch.testing.assert_close(moved, readout.sites[1].delta)


def heads_by_layer(masker, ids):
    """(a, v, z, Δz) of every layer, with axes (masked key, head, channel): the query's pattern, values and heads."""
    batch, readouts = readouts_of(masker, [ids], [single_tokens(len(ids), None)])
    heads = masker.decoder.heads
    stream = masker.decoder.embed(batch.token_ids, batch.positions)
    for readout, layer in zip(readouts, masker.decoder.layers, strict=True):
        rotaries = masker.decoder.rotaries(batch.positions, len(ids))
        q, k, v = layer.project(stream, rotaries, max_rows=len(ids))
        visible = visible_keys(batch.query_positions, len(ids), layer.attention.window)[:, None, None]
        keys = batch.prompts.heads(k)
        scores = query_scores(q[-1:], keys, scoring=layer.attention.scoring, visible=visible)
        a = torch.softmax(scores, -1)[0].flatten(0, 1).T[..., None]
        values = v.repeat_interleave(heads.num_heads // heads.num_kv_heads, dim=1)
        z, delta = (x.unflatten(1, (*a.shape[1:2], -1)) for x in (readout.sites[2].baseline, readout.sites[2].delta))
        yield a, values, z, delta
        stream = readout.residual


def test_masked_heads_equal_the_closed_form(case, masker):
    """z' = (z - a·v) / (1 - a): exact in float64 as long as a is not close to 1."""
    for a, values, z, delta in heads_by_layer(masker, token_ids(case)):
        safe = (a < 0.999).expand_as(values)
        torch.testing.assert_close((z + delta)[safe], ((z - a * values) / (1 - a))[safe])


def test_a_key_outside_the_window_moves_exactly_nothing():
    case = BY_NAME["mistral-window"]
    distances = AttentionMasker(build(case)).measure(token_ids(case)).distances
    outside = case.length - case.config["sliding_window"]
    assert (distances[:, :outside] == 0).all()
    assert (distances[:, outside:, :, 0] > 0).all()


def test_the_mask_bites(case):
    """A mask that a kernel ignores gives distances near 0 everywhere, and nobody notices."""
    distances = AttentionMasker(build(case)).measure(token_ids(case), tokens=[case.length - 2]).distances
    assert (distances[..., 0] > 0).all()
    assert np.median(distances[..., 0]) > 1e-3


def test_subsets_are_rows_of_the_full_table(case, masker):
    ids = token_ids(case)
    full = masker.measure(ids).distances
    part = masker.measure(ids, layers=[2, 0, 0], tokens=[5, 1])
    assert (part.layers, part.tokens) == ((0, 2), (1, 5))
    np.testing.assert_allclose(part.distances, full[[0, 2]][:, [1, 5]], rtol=1e-9, atol=1e-15)


def measured(batch, readouts, **limits):
    return measure_readouts(readouts, batch.query_origins.rows, limits=Limits(**limits))[0].numpy()


@pytest.mark.parametrize(
    "limits",
    [
        Limits(rows=1),
        Limits(rows=5),
        Limits(pattern_cells=1, joint_cells=0),
        Limits(joint_cells=0),
        Limits(joint_cells=0, masked_variants=0),
    ],
)
def test_a_chunked_run_gives_the_same_table(case, masker, limits):
    ids = token_ids(case)
    full = masker.measure(ids).distances
    batch, readouts = readouts_of(masker, [ids], [single_tokens(len(ids), None)], limits=limits)
    cut = measured(batch, readouts, buffered_cells=1)
    np.testing.assert_allclose(cut, full, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("extra", [0, 45])
@pytest.mark.parametrize("limits", [Limits(), Limits(masked_variants=8), Limits(rows=7)])
def test_a_batch_of_unequal_prompts_equals_single_prompts(case, masker, extra, limits):
    case = replace(case, length=case.length + extra)
    prompts = [token_ids(case, seed=seed)[: case.length - seed] for seed in (0, 3, 1)]
    knockouts = [single_tokens(len(ids), tokens) for ids, tokens in zip(prompts, (None, [0, 2], None), strict=True)]
    batch, readouts = readouts_of(masker, prompts, knockouts, limits=limits)
    together = measured(batch, readouts)
    alone = [masker.measure(prompts[0]), masker.measure(prompts[1], tokens=[0, 2]), masker.measure(prompts[2])]
    expected = np.concatenate([impact.distances for impact in alone], axis=1)
    defined = ~np.isnan(expected)
    np.testing.assert_allclose(together[defined], expected[defined], rtol=1e-9, atol=1e-15)


def test_a_span_of_one_token_equals_the_token_and_longer_spans_hide_all_of_theirs(case, masker):
    ids = token_ids(case)
    query = len(ids) - 1
    spans = [(3,), (4,), (3, 4)]
    batch, readouts = readouts_of(masker, [ids], [Knockouts(query, tuple(spans))])
    both = measured(batch, readouts)
    single = masker.measure(ids, tokens=[3, 4]).distances
    np.testing.assert_allclose(both[:, :2], single, rtol=1e-9, atol=1e-15)
    visible = max(0, len(ids) - (masker.decoder.layers[0].attention.window or len(ids)))
    moved = single[:, :, 0, 0] > 0
    assert (moved == (np.array([3, 4]) >= visible)).all() or case.name == "qwen3-window"
    for one, position in enumerate((3, 4)):
        if position >= visible:
            assert not np.allclose(both[:, 2, 0], both[:, one, 0])


def test_per_head_cosine_equals_that_of_value_zeroing(case, masker):
    """Dropping a·v from z, or renormalising what is left: same direction, other length."""
    for a, values, z, delta in heads_by_layer(masker, token_ids(case)):
        zeroed, masked = z - a * values, z + delta
        defined = (a[..., 0] < 0.999) & (masked.norm(dim=-1) > 0)
        cosine = torch.nn.functional.cosine_similarity(zeroed, masked, dim=-1)
        torch.testing.assert_close(cosine[defined], torch.ones_like(cosine[defined]))


def test_running_leaves_the_model_as_it_was(case):
    model = build(case)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    buffers = {name: tensor.clone() for name, tensor in model.named_buffers()}
    setting, training = model.config._attn_implementation, model.training
    AttentionMasker(model).run(token_ids(case))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(tensor, buffers[name]) for name, tensor in model.named_buffers())
    assert (model.config._attn_implementation, model.training) == (setting, training)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
