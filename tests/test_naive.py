"""The naive reference beside an even plainer twin: one layer, one query, one head at a time, no hooks and no masks."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PreTrainedModel, Qwen2Config, Qwen3Config

from benchmarks.naive import naive_table, read_pass, run_naive
from benchmarks.oracle import NoNarrowing, float64_model

COMMON = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
WINDOWED = {"layer_types": ["full_attention", "sliding_attention", "full_attention"], "sliding_window": 3}
CONFIGS = {
    "qwen3": Qwen3Config(**COMMON, head_dim=10),
    "qwen3-window": Qwen3Config(**COMMON, head_dim=10, use_sliding_window=True, **WINDOWED),
    "qwen2-window": Qwen2Config(**COMMON, use_sliding_window=True, **WINDOWED),
    "llama": LlamaConfig(**COMMON, attention_bias=True),
    "mistral-window": MistralConfig(**COMMON, sliding_window=4),
}
TOKEN_IDS = [5, 60, 17, 3, 17, 42, 9]
# (dtype, attention, rtol, share of the largest distance below which a cell is left out, why)
TOLERANCES = [
    (torch.float32, "sdpa", 2e-3, 1e-2, "two nearly equal vectors are subtracted in float32"),
    (torch.float32, "eager", 2e-3, 1e-2, "two nearly equal vectors are subtracted in float32"),
    (torch.bfloat16, "sdpa", 0.5, 0.3, "three significant digits before the subtraction"),
]


pytestmark = pytest.mark.usefixtures("one_thread")


def tiny(name: str, *, attention: str = "sdpa") -> PreTrainedModel:
    """A random model with biases and norm weights that matter, and scores of a few units."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation=attention, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + (1.0 if parameter.ndim == 1 else 0.0))
    return model


def twin_window(config, layer: int) -> int:
    """How many keys up to the query a layer sees, from the configuration alone."""
    types = getattr(config, "layer_types", None)
    sliding = config.model_type == "mistral" or (types is not None and types[layer] == "sliding_attention")
    return config.sliding_window if sliding else 10**9


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def twin_readout(model: PreTrainedModel, x: torch.Tensor, *, layer: int, masked: int | None) -> list[torch.Tensor]:
    """Full, Attn and every head's z of the last query, by hand from the layer's weights and its input ``x``."""
    block, attention = model.base_model.layers[layer], model.base_model.layers[layer].self_attn
    normed, length, head_dim = block.input_layernorm(x), len(x), attention.head_dim
    q, k, v = (
        project(normed).view(length, -1, head_dim) for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    if hasattr(attention, "q_norm"):
        q, k = attention.q_norm(q), attention.k_norm(k)
    cos, sin = (table[0, :, None] for table in model.base_model.rotary_emb(x[None], torch.arange(length)[None]))
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    seen = [p for p in range(length) if p != masked and length - p <= twin_window(model.config, layer)]
    heads = []
    for head in range(q.shape[1]):
        kv = head // (q.shape[1] // k.shape[1])
        pattern = (k[seen, kv] @ q[-1, head] * head_dim**-0.5).softmax(0)
        heads.append(pattern @ v[seen, kv])
    attn_out = attention.o_proj(torch.cat(heads))
    return [attn_out + block.mlp(block.post_attention_layernorm(x[-1] + attn_out)), attn_out, *heads]


@torch.no_grad()
def twin_distances(model: PreTrainedModel) -> np.ndarray:
    """(L2, cosine) of every layer, token and site, by hand."""
    states = model.base_model(torch.tensor([TOKEN_IDS]), output_hidden_states=True, use_cache=False).hidden_states
    cells = []
    for layer in range(model.config.num_hidden_layers):
        baseline = twin_readout(model, states[layer][0], layer=layer, masked=None)
        for masked in range(len(TOKEN_IDS)):
            pairs = list(zip(baseline, twin_readout(model, states[layer][0], layer=layer, masked=masked), strict=True))
            cells.append([[float((m - b).norm()), float(1 - b @ m / (b.norm() * m.norm()))] for b, m in pairs])
    return np.array(cells).reshape(model.config.num_hidden_layers, len(TOKEN_IDS), -1, 2)


@pytest.mark.parametrize("name", CONFIGS)
def test_float64_equals_the_twin(name):
    model = float64_model(tiny(name))
    run = run_naive(model, TOKEN_IDS)
    with NoNarrowing():
        expected = twin_distances(model)
    assert expected[..., 0].max() > 0.1
    np.testing.assert_allclose(run.distances, expected, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(("dtype", "attention", "rtol", "share", "why"), TOLERANCES)
def test_other_dtypes_approach_float64(dtype, attention, rtol, share, why):
    model = tiny("qwen3-window", attention=attention).to(dtype)
    truth = run_naive(float64_model(model), TOKEN_IDS).distances[..., 0]
    large = truth > share * truth.max()
    assert large.sum() > 10
    for wide in (False, True):
        found = run_naive(model, TOKEN_IDS, wide=wide).distances[..., 0]
        np.testing.assert_allclose(found[large], truth[large], rtol=rtol, err_msg=why)


def test_the_baseline_is_the_unmodified_model():
    model, ids = tiny("qwen3-window", attention="eager"), torch.tensor([TOKEN_IDS])
    with torch.no_grad():
        hidden = model.base_model(ids, output_hidden_states=True, use_cache=False).hidden_states
        for layer in range(2):
            full = read_pass(model, ids, layer=layer, masked_position=None).updates[0]
            torch.testing.assert_close(full, (hidden[layer + 1] - hidden[layer])[0, -1])


def test_one_forward_per_layer_and_token_and_one_baseline_per_layer():
    model, calls = tiny("llama"), []
    handle = model.base_model.register_forward_pre_hook(lambda *_: calls.append(1))
    run = run_naive(model, TOKEN_IDS, tokens=[0, 2, 5])
    handle.remove()
    assert len(calls) == run.num_passes == run.all_passes == 3 * (3 + 1)


def test_a_stated_number_of_passes():
    run = run_naive(tiny("llama"), TOKEN_IDS, max_passes=10)
    assert (run.num_passes, run.all_passes) == (10, 3 * 8)
    measured = ~np.isnan(run.distances[..., 0, 0])
    assert measured.tolist() == [[True] * 7, [True] + [False] * 6, [False] * 7]
    assert np.isnan(run.sizes[:, 0]).tolist() == [False, False, True]


def test_subsets_are_rows_of_the_whole():
    model = tiny("qwen3")
    whole = run_naive(model, TOKEN_IDS).distances
    part = run_naive(model, TOKEN_IDS, layers=[2, 0], tokens=[6, 1]).distances
    np.testing.assert_array_equal(part, whole[[2, 0]][:, [6, 1]])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_query_that_sees_nothing_is_undefined(attention):
    run = run_naive(tiny("qwen3", attention=attention), [7])
    assert np.isnan(run.distances).all()
    assert np.isfinite(run.sizes).all()
    assert naive_table(run)["l2_distance"].null_count() == 3 * 6


def test_a_key_outside_the_window_changes_nothing():
    run = run_naive(tiny("mistral-window"), TOKEN_IDS)
    assert (run.distances[:, :3, :, 0] == 0).all()
    assert (run.distances[:, 3:, :, 0] > 0).all()


def test_hooks_are_removed_after_success_and_failure(monkeypatch):
    model = tiny("llama")
    run_naive(model, TOKEN_IDS, tokens=[0])
    monkeypatch.setattr(model.base_model.layers[2], "mlp", torch.nn.Linear(1, 1))
    with pytest.raises(RuntimeError):
        run_naive(model, TOKEN_IDS)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_table_has_the_six_columns_in_order():
    run = run_naive(tiny("llama"), TOKEN_IDS, layers=[1], tokens=[0, 4])
    table = naive_table(run)
    assert table.columns == [
        "layer",
        "token_masked",
        "token_position",
        "variant",
        "l2_distance",
        "cosine_distance",
    ]
    assert table["variant"].to_list() == ["Full", "Attn", "Head_0", "Head_1", "Head_2", "Head_3"] * 2
    assert table["token_masked"].to_list() == ["5"] * 6 + ["17"] * 6
    assert table["token_position"].to_list() == [0] * 6 + [4] * 6
    np.testing.assert_array_equal(table["cosine_distance"].to_numpy(), run.distances[..., 1].ravel())


def test_the_oracle_leaves_the_model_alone():
    model = tiny("qwen3", attention="sdpa")
    wide = float64_model(model)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in wide.parameters()} == {torch.float64}
    assert model.config._attn_implementation == "sdpa"
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    torch.testing.assert_close(wide(torch.tensor([TOKEN_IDS])).logits.float(), model(torch.tensor([TOKEN_IDS])).logits)


def test_casts_are_left_out_in_the_oracle_alone():
    wide = float64_model(tiny("qwen3"))
    wide(torch.tensor([TOKEN_IDS]))
    with pytest.raises(IndexError):
        wide(torch.tensor([[10**6]]))
    x = torch.ones(1, dtype=torch.float64)
    assert x.float().dtype == x.to(torch.float32).dtype == x.softmax(-1, dtype=torch.float32).dtype == torch.float32
    with NoNarrowing():
        assert x.float().dtype == x.to(dtype=torch.float32).dtype == x.softmax(-1, dtype=torch.float32).dtype == x.dtype
        assert torch.ones(1, dtype=torch.float32).to(torch.bfloat16).float().dtype == torch.float32


def test_other_families_and_attentions_are_refused():
    model = tiny("llama")
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(ValueError, match="takes no 4-D mask"):
        run_naive(model, TOKEN_IDS)
    model.config.model_type = "gemma3"
    with pytest.raises(ValueError, match="gemma3"):
        run_naive(model, TOKEN_IDS)
