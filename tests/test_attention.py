"""Attention kernels against loops over heads and keys that anyone can read."""

import pytest
import torch
from einops import rearrange

import engine.kernels.products as products
from engine.kernels.attention import joint_z, leave_one_out, query_scores, sums_without_each, z_difference
from engine.kernels.batches import make_batch
from engine.kernels.causal import blockwise_z, causal_z
from engine.kernels.masks import masked_copies, query_masks, visible_keys
from engine.kernels.rotary import rotary_tables
from engine.kernels.scores import Scoring
from engine.text.knockouts import Knockouts

B, S, KV, G, D = 2, 7, 3, 2, 5


@pytest.fixture
def qkv():
    random = torch.Generator().manual_seed(0)
    q = torch.randn(B, KV * G, S, D, generator=random, dtype=torch.float64)
    k, v = torch.randn(2, B, KV, S, D, generator=random, dtype=torch.float64)
    return q, k, v


def slow_z(q, k, v, *, scale, sees):
    """One query, one head: softmax over a list of keys."""
    z = torch.zeros_like(q)
    for b, i, kv, g in torch.cartesian_prod(*map(torch.arange, (B, S, KV, G))).tolist():
        keys = [j for j in range(S) if sees(b, i, j)]
        if keys:
            scores = torch.stack([q[b, kv * G + g, i] @ k[b, kv, j] * scale for j in keys])
            z[b, kv * G + g, i] = torch.softmax(scores, 0) @ v[b, kv, keys]
    return z


@pytest.mark.parametrize("window", [None, 1, 3, S, 100])
def test_causal_attention(qkv, window):
    expected = slow_z(*qkv, scale=0.4, sees=lambda b, i, j: 0 <= i - j < (window or S))
    torch.testing.assert_close(causal_z(*qkv, scoring=Scoring(0.4), window=window), expected)


@pytest.mark.parametrize("window", [None, 1, 3, S, 100])
@pytest.mark.parametrize("block", [1, 2, 3, S, 10])
def test_causal_attention_block_by_block(qkv, window, block, monkeypatch):
    monkeypatch.setattr("engine.kernels.causal.BLOCK", block)
    expected = slow_z(*qkv, scale=0.4, sees=lambda b, i, j: 0 <= i - j < (window or S))
    torch.testing.assert_close(blockwise_z(*qkv, scale=0.4, window=window), expected)


@pytest.mark.parametrize("window", [None, 300, 20])
@pytest.mark.parametrize("product", [products._onednn, torch.nn.functional.linear])
def test_long_prompts_by_either_product(product, window, monkeypatch):
    monkeypatch.setattr(products, "_fastest_on_cpu", lambda: product)
    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 400, heads, 8, generator=random).transpose(1, 2) for heads in (4, 2, 2))
    expected = causal_z(q.double(), k.double(), v.double(), scoring=Scoring(0.4), window=window)
    torch.testing.assert_close(
        causal_z(q, k, v, scoring=Scoring(0.4), window=window), expected.float(), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("window", [None, 3])
def test_rows_with_their_masked_copies_are_causal_attention_and_differences(qkv, window):
    q, k, v = (x[:1] for x in qkv)
    knockouts = Knockouts(S - 2, ((0,), (S - 2,), (1, 3)))
    batch = make_batch([[0] * S], [knockouts], torch.device("cpu"))
    masks = query_masks(batch, window)
    scores = query_scores(q[:, :, S - 2], k, scoring=Scoring(0.4), visible=masks.visible)
    delta = z_difference(scores, torch.softmax(scores, -1), v, hidden=batch.hidden)[0]
    z = rearrange(causal_z(q, k, v, scoring=Scoring(0.4), window=window), "1 h s d -> s (h d)")
    rows = [rearrange(x, "1 h s d -> s h d") for x in (q, k, v)]
    for only_query, baseline in ((False, z), (True, z[S - 2 : S - 1])):
        copies = masked_copies(batch, window, only_query=only_query, group=G, dtype=torch.float64)
        assert (copies.num_baseline, len(copies.queries)) == (len(baseline), len(baseline) + 3)
        torch.testing.assert_close(joint_z(*rows, scoring=Scoring(0.4), copies=copies), torch.cat((baseline, delta)))


@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("sharpness", [1.0, 30.0])
def test_difference_of_every_variant(qkv, window, sharpness):
    q, k, v = qkv
    q = q * sharpness
    query = torch.tensor([S - 1, S - 3])
    hidden_keys = [(0,), (S - 1,), (2, 3), tuple(range(S)), ()]
    hidden = torch.zeros(B, len(hidden_keys), S, dtype=torch.bool)
    for i, keys in enumerate(hidden_keys):
        hidden[:, i, list(keys)] = True
    rows = torch.arange(B)
    visible = visible_keys(query, S, window)
    scores = query_scores(q[rows, :, query], k, scoring=Scoring(0.4), visible=visible[:, None, None])
    blind = ~(visible[:, None] & ~hidden).any(-1)[:, None, :, None, None]
    delta = z_difference(scores, torch.softmax(scores, -1), v, hidden=hidden[:, None, :, None], blind=blind)
    baseline = slow_z(q, k, v, scale=0.4, sees=lambda b, i, j: 0 <= i - j < (window or S))
    for i, keys in enumerate(hidden_keys):
        masked = slow_z(q, k, v, scale=0.4, sees=lambda b, i, j, cut=keys: 0 <= i - j < (window or S) and j not in cut)
        expected = (masked - baseline)[rows, :, query].flatten(1)
        torch.testing.assert_close(delta[:, i], expected, rtol=1e-7, atol=1e-13)


def test_keys_that_are_not_visible_get_exactly_nothing(qkv):
    q, k, _ = qkv
    visible = torch.ones(B, 1, 1, S, dtype=torch.bool)
    visible[..., 2] = False
    pattern = torch.softmax(query_scores(q[:, :, -1] * 50, k, scoring=Scoring(1.0), visible=visible), -1)
    assert (pattern[..., 2] == 0).all()
    torch.testing.assert_close(pattern.sum(-1), torch.ones(B, KV, G, dtype=torch.float64))


def test_a_key_with_all_the_attention_is_removed_exactly(qkv):
    """At a = 1 - 1e-40 the short form (o - a·v)/(1 - a) divides by zero; a masked softmax does not."""
    q, k, v = qkv
    scores = query_scores(q[:, :, -1], k, scoring=Scoring(0.4), visible=torch.ones(B, 1, 1, S, dtype=torch.bool))
    scores[..., 0] += 92.0
    hidden = torch.zeros(B, 1, 1, 1, S, dtype=torch.bool)
    hidden[..., 0] = True
    delta = z_difference(scores, torch.softmax(scores, -1), v, hidden=hidden)[:, 0]
    rest = torch.softmax(scores[..., 1:], -1) @ v[:, :, 1:]
    torch.testing.assert_close(delta, (rest - v[:, :, :1]).flatten(1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("num_keys", [1, 2, 3, 4, 5, 63, 64, 65, 199])
def test_sums_without_each(num_keys):
    x = torch.randn(2, 1, 3, num_keys, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(sums_without_each(x), x.sum(3, keepdim=True) - x, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
@pytest.mark.parametrize("sharpness", [0.1, 1.0, 10.0, 100.0])
def test_leaving_one_out_equals_a_mask_for_each(sharpness, dtype, rtol):
    """Also where one key holds nearly everything, and what it leaves underflows."""
    random = torch.Generator().manual_seed(3)
    num_keys = 200
    q = torch.randn(B, KV * G, D, generator=random, dtype=torch.float64) * sharpness
    k, v = torch.randn(2, B, KV, num_keys, D, generator=random, dtype=torch.float64)
    visible = visible_keys(torch.tensor([num_keys - 1, num_keys - 40]), num_keys, 90)[:, None, None]
    scores = query_scores(q.to(dtype), k.to(dtype), scoring=Scoring(1.0), visible=visible)
    hidden = torch.eye(num_keys, dtype=torch.bool)[None, None, :, None].expand(B, -1, -1, -1, -1)
    wide = scores.double()
    expected = z_difference(wide, torch.softmax(wide, -1), v, hidden=hidden)
    delta = leave_one_out(scores, torch.softmax(scores, -1), v.to(dtype), visible=visible).double()
    resolved = expected.norm(dim=-1) > 1e-30
    error = (delta - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert error[resolved].max() < rtol
    assert delta[~resolved].abs().max() < 1e-30


def test_rotation_turns_half_split_pairs():
    random = torch.Generator().manual_seed(1)
    x = torch.randn(3, 2, 8, generator=random, dtype=torch.float64)
    angle = torch.rand(3, 4, generator=random, dtype=torch.float64)
    tables = rotary_tables(torch.cat((angle, angle), -1).cos(), torch.cat((angle, angle), -1).sin())
    pairs = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones_like(angle), angle)[:, None]
    torch.testing.assert_close(tables.rotate(x), torch.cat((pairs.real, pairs.imag), -1))
