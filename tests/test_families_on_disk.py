"""Every family as transformers saves it, in all its layouts, and as the hub holds it: the same table as from memory."""

import json
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from benchmarks.species import LLAMA3, LONGROPE, YARN
from benchmarks.zoo import CASES, build, token_ids
from engine import AttentionMasker
from engine.errors import ModelError

BY_NAME = {case.name: case for case in CASES}
FIRST = [case.name for case in CASES if not case.variation]
TIED = ["gemma", "gemma-2", "gemma-3", "smollm3", "gpt-2", "gpt-neox-no-biases-tied", "qwen3-moe-sparse-step"]
RENAMED = ["mixtral", "qwen3-moe", "qwen3-moe-dense-layers", "gpt-neox"]

pytestmark = pytest.mark.usefixtures("one_thread")


def assert_same_table(folder: Any, name: str, dtype: str = "float32") -> None:
    """The folder's model read by the engine gives the table of the one that transformers reads."""
    case = BY_NAME[name]
    model = getattr(transformers, case.architecture).from_pretrained(folder, dtype=dtype)
    loaded = AttentionMasker.from_pretrained(str(folder), device="cpu", dtype=dtype)
    assert loaded.run(token_ids(case)).equals(AttentionMasker(model).run(token_ids(case)))


def change_tensors(folder, change):
    """Rewrite the one file of weights."""
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


@pytest.mark.parametrize("name", BY_NAME)
def test_as_transformers_saves_it(name, tmp_path):
    build(BY_NAME[name]).save_pretrained(tmp_path)
    assert_same_table(tmp_path, name)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("asked", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("name", ["gemma-2", "granite", "gpt-2"])
def test_the_stream_begins_as_transformers_begins_it(name, stored, asked, tmp_path, monkeypatch):
    """Also where weights stay narrower than the answers that are asked for, as on a GPU."""
    build(BY_NAME[name], dtype=stored).save_pretrained(tmp_path)
    case, prompt = BY_NAME[name], torch.tensor(token_ids(BY_NAME[name]))
    model = getattr(transformers, case.architecture).from_pretrained(tmp_path, dtype=asked)
    if asked == "float32":
        monkeypatch.setattr("engine.model.checkpoints.splits", lambda *_, **words: words["stored"] == torch.bfloat16)
    with torch.inference_mode():
        theirs = model.base_model(prompt[None], output_hidden_states=True).hidden_states[0][0]
    for masker in (AttentionMasker.from_pretrained(str(tmp_path), device="cpu", dtype=asked), AttentionMasker(model)):
        ours = masker.decoder.embedding(prompt, torch.arange(len(prompt)), masker.decoder.dtype)
        torch.testing.assert_close(ours.to(theirs.dtype), theirs, rtol=0, atol=0)


@pytest.mark.parametrize("name", FIRST)
def test_in_shards_and_in_bfloat16(name, tmp_path):
    build(BY_NAME[name], dtype=torch.bfloat16).save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_same_table(tmp_path, name, "bfloat16")


@pytest.mark.parametrize("words", [{}, {"cut": "window:2", "read": "output"}], ids=["table", "output"])
@pytest.mark.parametrize("name", FIRST)
def test_read_layer_by_layer(name, words, tmp_path):
    build(BY_NAME[name]).save_pretrained(tmp_path)
    whole, streamed = (AttentionMasker.from_pretrained(str(tmp_path), device="cpu", stream=on) for on in (False, True))
    assert streamed.run(token_ids(BY_NAME[name]), **words).equals(whole.run(token_ids(BY_NAME[name]), **words))


@pytest.mark.parametrize("name", TIED)
def test_a_base_model_without_a_vocabulary_head(name, tmp_path):
    build(BY_NAME[name]).base_model.save_pretrained(tmp_path)
    assert_same_table(tmp_path, name)


@pytest.mark.parametrize("name", RENAMED)
def test_under_the_names_of_memory(name, tmp_path):
    build(BY_NAME[name]).save_pretrained(tmp_path, save_original_format=False)
    assert_same_table(tmp_path, name)


def test_gpt2_as_the_hub_holds_it(tmp_path):
    """The base model's names, and causal masks that nobody reads any more."""
    model = build(BY_NAME["gpt-2"])
    model.save_pretrained(tmp_path)
    mask = torch.ones(1, 1, 64, 64).tril()
    old = {f"h.{layer}.attn.bias": mask.clone() for layer in range(3)}
    old |= {f"h.{layer}.attn.masked_bias": torch.tensor(-1e4) for layer in range(3)}
    change_tensors(tmp_path, lambda held: {k.removeprefix("transformer."): v for k, v in held.items()} | old)
    assert_same_table(tmp_path, "gpt-2")
    copies = {"lm_head.weight": model.lm_head.weight.detach().clone()}
    change_tensors(tmp_path, lambda held: held | copies)
    assert_same_table(tmp_path, "gpt-2")


def test_pythia_as_the_hub_holds_it(tmp_path):
    """Float16, masks as booleans, and the frequencies."""
    build(BY_NAME["gpt-neox"], dtype=torch.float16).save_pretrained(tmp_path)
    old = {}
    for layer in range(3):
        at = f"gpt_neox.layers.{layer}.attention"
        old |= {f"{at}.bias": torch.ones(1, 1, 64, 64).tril().bool(), f"{at}.masked_bias": torch.tensor(-1e9)}
        old |= {f"{at}.rotary_emb.inv_freq": torch.ones(2)}
    change_tensors(tmp_path, lambda held: held | old)
    assert_same_table(tmp_path, "gpt-neox")


def edit_config(folder, *, without=(), **changes):
    file = folder / "config.json"
    held = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in held.items() if key not in without}))


@pytest.mark.parametrize(
    ("name", "without", "changes"),
    [
        ("gpt-neox", ["rope_parameters"], {"rotary_pct": 0.25, "rotary_emb_base": 10000}),
        ("qwen3-moe", ["num_local_experts", "rope_parameters"], {"num_experts": 6, "rope_theta": 10000.0}),
        ("gemma-3-window-in-all-layers", ["rope_parameters"], {"rope_local_base_freq": 1e4, "rope_theta": 1e6}),
        ("phi-3", ["rope_parameters"], {"rope_theta": 10000.0, "rope_scaling": None, "partial_rotary_factor": 1.0}),
        (
            "phi-3-longrope",
            ["rope_parameters"],
            {
                "rope_theta": 10000.0,
                "original_max_position_embeddings": 10,
                "rope_scaling": {"type": "longrope", **{key: LONGROPE[key] for key in ("short_factor", "long_factor")}},
            },
        ),
        (
            "gemma-3",
            ["rope_parameters"],
            {"rope_theta": 1e4, "rope_local_base_freq": 100.0, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        ),
        ("gpt-oss", ["rope_parameters"], {"rope_theta": 1e4, "rope_scaling": {**YARN, "truncate": False}}),
        ("llama-llama3-rope", ["rope_parameters"], {"rope_theta": 1e4, "rope_scaling": LLAMA3}),
        ("gpt-2", ["n_inner", "tie_word_embeddings", "scale_attn_by_inverse_layer_idx"], {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_configs_from_before_transformers_5(name, without, changes, tmp_path):
    model = build(BY_NAME[name])
    model.save_pretrained(tmp_path)
    edit_config(tmp_path, without=without, **changes)
    assert_same_table(tmp_path, name)
    ids = token_ids(BY_NAME[name])
    assert AttentionMasker.from_pretrained(str(tmp_path), device="cpu").run(ids).equals(AttentionMasker(model).run(ids))


def without(*parts):
    return lambda held: {name: tensor for name, tensor in held.items() if not all(part in name for part in parts)}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("mixtral", without("layers.1", "experts.3.w2"), "1 weights are missing"),
        ("qwen3-moe", without("layers.2", "mlp.gate.weight"), "1 weights are missing"),
        ("gpt-oss", without("layers.0", "sinks"), "1 weights are missing"),
        ("gpt-2", without("wpe"), "1 weights are missing"),
        (
            "phi-3",
            lambda held: {k: v[1:] if "qkv" in k else v for k, v in held.items()},
            "3 weights are missing or mis",
        ),
        ("gemma-3", without("q_norm"), "3 weights are missing"),
        ("olmo-2", lambda held: held | {"model.layers.0.input_layernorm.weight": torch.ones(48)}, "not account for"),
        ("gpt-neox", without("embed_out"), "1 weights are missing"),
        ("gpt-oss", lambda held: held | {"model.layers.0.mlp.experts.gate_up_proj_blocks": torch.ones(1)}, "account"),
    ],
)
def test_incomplete_and_foreign_checkpoints_are_refused(name, change, message, tmp_path):
    build(BY_NAME[name]).save_pretrained(tmp_path)
    change_tensors(tmp_path, change)
    with pytest.raises(ModelError, match=message):
        AttentionMasker.from_pretrained(str(tmp_path), device="cpu")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("gpt-oss", {"quantization_config": {"quant_method": "mxfp4"}}, "quantised"),
        ("gemma-2", {"use_bidirectional_attention": True}, "both directions"),
        ("gpt-2", {"add_cross_attention": True}, "cross-attention"),
    ],
)
def test_what_a_config_asks_for_in_vain_is_refused(name, changes, message, tmp_path):
    build(BY_NAME[name]).save_pretrained(tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(ModelError, match=message):
        AttentionMasker.from_pretrained(str(tmp_path), device="cpu")
