"""The slow twin beside the unmodified model and beside the naive reference of the default table."""

import numpy as np
import polars as pl
import pytest
import torch
from naive_questions import SIZE, naive_answer
from tiny import CASES, build, token_ids
from twin_forward import Cut, look, with_plain_attention
from twin_runs import Asked, Twin

from benchmarks.naive import naive_table, run_naive
from benchmarks.oracle import float64_model

SHORT = [case for case in CASES if case.length <= 17]
UNIFORM = [case for case in SHORT if case.architecture in ("LlamaForCausalLM", "MistralForCausalLM")]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_without_a_cut_it_is_the_model(case):
    model, ids = float64_model(build(case)), token_ids(case)
    seen = look(with_plain_attention(model), ids)
    with torch.inference_mode():
        theirs = model(torch.tensor([ids]), output_hidden_states=True, use_cache=False)
    torch.testing.assert_close(seen.logits, theirs.logits[0])
    torch.testing.assert_close(seen.final, theirs.hidden_states[-1][0])
    for shown, stream in zip(seen.layers, theirs.hidden_states, strict=False):
        torch.testing.assert_close(shown["before"], stream[0])
        torch.testing.assert_close(shown["before"] + shown["attn_out"] + shown["mlp_out"], shown["after"])


@pytest.mark.parametrize("case", UNIFORM, ids=lambda case: case.name)
def test_cut_everywhere_from_all_is_a_forward_under_a_4d_mask(case):
    """Masked positions may be blind, but no later one reads them, so only they may differ."""
    model, ids, hidden = float64_model(build(case)), token_ids(case), 2
    window = getattr(model.config, "sliding_window", None) or len(ids)
    if window == 1:
        pytest.skip("every query sees itself alone")
    q, k = torch.arange(len(ids))[:, None], torch.arange(len(ids))[None]
    visible = (k <= q) & (q - k < window) & (k != hidden)
    mask = torch.zeros(visible.shape, dtype=torch.float64).masked_fill(~visible, -torch.inf)[None, None]
    with torch.inference_mode():
        theirs = model(torch.tensor([ids]), attention_mask=mask, use_cache=False).logits[0].log_softmax(-1)
        plain = model(torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
    table = naive_answer(
        model, ids, cut="all", hidden_from="all", read="output", tokens=[hidden], query=list(range(len(ids)))
    )
    for row in table.iter_rows(named=True):
        q = row["query_position"]
        answer = int(plain[q].argmax())
        assert row["answer"] == str(answer)
        assert row["answer_logprob"] == pytest.approx(float(plain[q, answer]), abs=1e-10)
        assert row["answer_logprob_masked"] == pytest.approx(float(theirs[q, answer]), abs=1e-10)
        kl = torch.nn.functional.kl_div(theirs[q], plain[q], log_target=True, reduction="sum")
        assert row["kl_divergence"] == pytest.approx(float(kl), abs=1e-10)
        assert row["top_token_masked"] == str(int(theirs[q].argmax()))


@pytest.mark.parametrize("case", SHORT, ids=lambda case: case.name)
def test_the_default_question_is_the_naive_table(case):
    model, ids = float64_model(build(case)), token_ids(case)
    ours, theirs = naive_answer(model, ids), naive_table(run_naive(model, ids))
    assert (
        ours.drop(SIZE).select(theirs.columns[:4]).rows()
        == theirs.select(*theirs.columns[:3], pl.col("variant").cast(pl.String)).rows()
    )
    for column in ("l2_distance", "cosine_distance"):
        found, expected = (table[column].cast(pl.Float64).fill_null(np.nan) for table in (ours, theirs))
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_values_that_are_zeroed_are_those_that_a_layer_projects():
    model, ids = float64_model(build(CASES[0])), token_ids(CASES[0])
    twin, layer, key = with_plain_attention(model), model.base_model.layers[1], 3
    hidden = torch.zeros(3, 4, len(ids), len(ids), dtype=torch.bool)
    hidden[1, :, :, key] = True
    cut = Cut(hidden=hidden, intervention="value", stand_ins=torch.zeros(3, 4, 16, dtype=torch.float64))
    kept = (torch.arange(len(ids)) != key)[:, None]
    hook = layer.self_attn.v_proj.register_forward_hook(lambda _, __, values: values * kept)
    with torch.inference_mode():
        theirs = model(torch.tensor([ids]), use_cache=False).logits[0]
    hook.remove()
    torch.testing.assert_close(look(twin, ids, cut).logits, theirs)


def test_whom_a_key_is_hidden_from():
    """Seen in the patterns: a column, the same but for the key itself, or one row; in the window's layers alone."""
    case = CASES[0]
    model, ids = build(case), token_ids(case)
    expected = {"all": {2, 3, 4, 5, 6, 7, 8}, "others": {3, 4, 5, 6, 7, 8}, "query": {8}}
    for hidden_from, queries in expected.items():
        twin = Twin(model, ids, Asked(cut="window:2", hidden_from=hidden_from, read="output", heads=[1]))
        seen = twin.run(1, len(ids) - 1, (2,))
        for layer, shown in enumerate(seen.layers):
            zeros = (shown["pattern"][:, 2:, 2] == 0).nonzero() + torch.tensor([0, 2])
            found = {(head, query) for head, query in zeros.tolist()}
            assert found == ({(1, query) for query in queries} if layer in (0, 1) else set()), (hidden_from, layer)


@pytest.mark.parametrize(
    ("cut", "layers"), [("window:1", [[0], [1], [2]]), ("window:2", [[0], [0, 1], [1, 2]]), ("all", [[0, 1, 2]] * 3)]
)
def test_windows(cut, layers):
    twin = Twin(build(CASES[0]), [1, 2, 3], Asked(cut=cut, read="output"))
    assert [twin.cut_layers(layer) for layer in range(3)] == layers


def test_a_blind_query_that_is_read_is_null_and_one_that_is_not_adds_nothing():
    case = CASES[0]
    model, ids = float64_model(build(case)), token_ids(case)
    words = {"cut": "all", "hidden_from": "all", "tokens": [0], "query": [0, 4]}
    table = naive_answer(model, ids, read="output", **words)
    measured = ("l2_distance", "cosine_distance", "kl_divergence", "answer_logprob_masked", "top_token_masked")
    assert all(table[name].is_null().to_list() == [True, False] for name in measured)
    assert table["answer_logprob"].null_count() == 0
    local = naive_answer(model, ids, tokens=[0], query=[0, 4], columns=["attention_mass", "relative_l2"])
    assert local.filter(pl.col("query_position") == 0)["l2_distance"].null_count() == 3 * 6
    assert local.filter(pl.col("query_position") == 0)["attention_mass"].to_list() == [1.0] * 3 * 6
    assert local.filter(pl.col("query_position") == 4)["l2_distance"].null_count() == 0
