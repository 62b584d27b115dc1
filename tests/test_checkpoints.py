"""Real loading from local folders: sharded, tied, any stored dtype; and every broken checkpoint refused by name."""

import json
import shutil

import numpy as np
import pytest
import torch
from tiny import CASES, build, token_ids
from tokenizers_for_tests import byte_level
from torch import nn

from engine import AttentionMasker
from engine.errors import DeviceError, ModelError

BY_NAME = {case.name: case for case in CASES}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Qwen3 with a tokenizer, as transformers saves it."""
    path = tmp_path_factory.mktemp("checkpoint")
    build(BY_NAME["qwen3"]).save_pretrained(path)
    byte_level().save_pretrained(path)
    return path


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def edit_config(path, **changes):
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("name", ["qwen3", "qwen3-bias", "qwen2", "llama-3", "mistral-window"])
@pytest.mark.parametrize("shard", ["5GB", "20KB"])
def test_a_saved_model_gives_the_same_table(name, shard, tmp_path):
    case = BY_NAME[name]
    model = build(case)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == "20KB")
    loaded = AttentionMasker.from_pretrained(str(tmp_path), device="cpu")
    assert loaded.run(token_ids(case)).equals(AttentionMasker(model).run(token_ids(case)))


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float64])
def test_any_stored_dtype_is_loaded_as_asked(stored, tmp_path):
    case = BY_NAME["qwen3"]
    build(case).to(stored).save_pretrained(tmp_path)
    masker = AttentionMasker.from_pretrained(str(tmp_path), device="cpu", dtype="float32")
    rounded = build(case)
    for parameter in rounded.parameters():
        parameter.data = parameter.data.to(stored).float()
    expected = AttentionMasker(rounded).measure(token_ids(case)).distances
    np.testing.assert_array_equal(masker.measure(token_ids(case)).distances, expected)


@pytest.mark.parametrize(("dtype", "result"), [("float32", "Float32"), ("float64", "Float64"), ("bfloat16", "Float32")])
def test_distances_are_at_least_float32(folder, dtype, result):
    table = AttentionMasker.from_pretrained(str(folder), device="cpu", dtype=dtype).run([5, 6, 7])
    assert str(table["l2_distance"].dtype) == str(table["cosine_distance"].dtype) == result


def test_a_checkpoint_without_tokenizer_reads_ids(folder, tmp_path):
    shutil.copy(folder / "config.json", tmp_path)
    shutil.copy(folder / "model.safetensors", tmp_path)
    masker = AttentionMasker.from_pretrained(str(tmp_path), device="cpu")
    assert masker.tokenizer is None
    assert masker.run([3, 4])["token_masked"].unique(maintain_order=True).to_list() == ["3", "4"]


def remove_weights(path):
    (path / "model.safetensors").unlink()


def pickle_weights(path):
    remove_weights(path)
    torch.save({}, path / "pytorch_model.bin")


def truncate_weights(path):
    data = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(data[: len(data) // 2])


def scramble_weights(path):
    (path / "model.safetensors").write_bytes(b"\xff" * 1000)


def drop_a_weight(path):
    from safetensors.torch import load_file, save_file

    weights = load_file(path / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


def misshape_a_weight(path):
    from safetensors.torch import load_file, save_file

    weights = load_file(path / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"] = torch.zeros(3, 3)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


def add_a_weight(path):
    from safetensors.torch import load_file, save_file

    weights = load_file(path / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight_scale_inv"] = torch.ones(1)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


def narrow_a_weight(path):
    from safetensors.torch import load_file, save_file

    weights = load_file(path / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    weights[name] = weights[name].to(torch.float8_e4m3fn)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


def break_config(path):
    (path / "config.json").write_text("{not json")


def remove_config(path):
    (path / "config.json").unlink()


def break_tokenizer(path):
    (path / "tokenizer.json").write_text("{}")


BROKEN = [
    (remove_weights, "weights"),
    (pickle_weights, "pickled"),
    (truncate_weights, "weights"),
    (scramble_weights, "weights"),
    (drop_a_weight, "incomplete: 1 weight.*layers.1.mlp.down_proj.weight"),
    (misshape_a_weight, "layers.1.mlp.down_proj.weight|weights"),
    (add_a_weight, "does not account for.*weight_scale_inv"),
    (narrow_a_weight, "stored as F8_E4M3, a quantised format"),
    (break_config, "config.json"),
    (lambda path: (path / "config.json").write_text("[1, 2]"), "config.json"),
    (lambda path: (path / "config.json").write_text("null"), "config.json"),
    (lambda path: edit_config(path, model_type=["llama"]), "config.json"),
    (remove_config, "config.json"),
    (break_tokenizer, "tokenizer"),
    (lambda path: edit_config(path, model_type="bloom"), "'bloom'.*not supported"),
    (lambda path: edit_config(path, model_type=None), "not supported"),
    (lambda path: edit_config(path, quantization_config={"quant_method": "gptq"}), "quantised"),
    (lambda path: edit_config(path, hidden_size="wide"), "weights|config"),
    (lambda path: edit_config(path, num_hidden_layers=4, layer_types=["full_attention"] * 4), "incomplete"),
]


@pytest.mark.parametrize(("damage", "message"), BROKEN, ids=[getattr(d, "__name__", "") for d, _ in BROKEN])
def test_a_broken_checkpoint_is_refused(copy, damage, message):
    damage(copy)
    with pytest.raises(ModelError, match=message):
        AttentionMasker.from_pretrained(str(copy), device="cpu")


@pytest.mark.parametrize(
    "name", ["./nothing", "/nothing/here", "~/nothing-here", "a/b/c", "C:\\models\\x", "", "x" * 300, "a\0b/c/d"]
)
def test_a_folder_that_is_not_there(name):
    with pytest.raises(ModelError, match="no model folder"):
        AttentionMasker.from_pretrained(name, device="cpu")


def test_a_file_is_not_a_model(folder):
    with pytest.raises(ModelError, match="is a file"):
        AttentionMasker.from_pretrained(str(folder / "config.json"), device="cpu")


def test_a_hub_id_that_cannot_be_had(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="check the id and the network"):
        AttentionMasker.from_pretrained("nobody/no-such-model", device="cpu")


@pytest.mark.parametrize(
    ("device", "message"),
    [
        (None, "unknown device"),
        (1.5, "unknown device"),
        ("cpu:7", "unknown device"),
        ("tpu", "unknown device"),
        ("", "unknown device"),
        ("cuda:99", "CUDA devices"),
        ("cpu:x", "unknown device"),
    ],
)
def test_devices_that_are_not_there(folder, device, message):
    with pytest.raises(DeviceError, match=message):
        AttentionMasker.from_pretrained(str(folder), device=device)


@pytest.mark.parametrize("dtype", ["float8", "int8", "", "half"])
def test_dtypes_that_are_not_offered(folder, dtype):
    with pytest.raises(DeviceError, match="unknown dtype"):
        AttentionMasker.from_pretrained(str(folder), device="cpu", dtype=dtype)


def test_an_adapted_layer_is_refused():
    model = build(BY_NAME["llama"])
    model.model.layers[1].mlp.extra = nn.Linear(3, 3)
    with pytest.raises(ModelError, match=r"layer 1 holds a weight.*mlp\.extra"):
        AttentionMasker(model)


def test_a_replaced_linear_layer_is_refused():
    class Quantised(nn.Linear):
        pass

    model = build(BY_NAME["llama"])
    model.model.layers[0].self_attn.q_proj = Quantised(48, 64, bias=False)
    with pytest.raises(ModelError, match=r"q_proj is a .*Quantised, not a plain linear layer"):
        AttentionMasker(model)


def test_a_subclass_runs_its_own_layers():
    class Mine(type(build(BY_NAME["llama"]))):
        pass

    model = build(BY_NAME["llama"])
    model.__class__ = Mine
    assert AttentionMasker(model).route == "generic"
    with pytest.raises(ModelError, match="not supported; supported are Qwen3ForCausalLM"):
        AttentionMasker(model, route="fused")


def test_a_model_without_storage_is_refused():
    with pytest.raises(ModelError, match="meta"):
        AttentionMasker(build(BY_NAME["llama"]).to("meta"))


def test_other_architectures_are_refused_by_name():
    import transformers

    config = transformers.BloomConfig(n_layer=1, hidden_size=8, n_head=2, vocab_size=10)
    with pytest.raises(ModelError, match="BloomForCausalLM"):
        AttentionMasker(transformers.BloomForCausalLM(config))


def test_weights_of_several_dtypes_are_refused():
    model = build(BY_NAME["llama"])
    model.model.layers[0].self_attn.q_proj.to(torch.bfloat16)
    with pytest.raises(ModelError, match=r"several dtypes \(torch.bfloat16, torch.float32\)"):
        AttentionMasker(model)


@pytest.mark.parametrize("thing", [5, build(BY_NAME["llama"])], ids=["number", "model"])
def test_what_is_no_name_is_refused(thing):
    with pytest.raises(ModelError, match="a folder or a hub id"):
        AttentionMasker.from_pretrained(thing)


def test_what_is_no_tokenizer_is_refused():
    with pytest.raises(ModelError, match="a str is no tokenizer"):
        AttentionMasker(build(BY_NAME["llama"]), "tokenizer")


def test_an_unknown_kind_of_attention_is_refused():
    model = build(BY_NAME["qwen3"])
    model.config.layer_types = ["full_attention", "chunked_attention", "full_attention"]
    with pytest.raises(ModelError, match="layer 1 has 'chunked_attention'"):
        AttentionMasker(model)
