"""The generic route from folders, on the command line and in datasets; and what it refuses, by name."""

import json
import os

import polars as pl
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny import CASES, build
from tokenizers_for_tests import byte_level

import engine
from benchmarks.generic_cases import BASE, GENERIC_CASES, OWN_KEYS, TOKENS, build_generic
from engine import AttentionMasker, read_results
from engine.commands import main
from engine.errors import ImpactError, ModelError, ResultsError, SelectionError
from engine.model.catalogue import HYBRID, NO_INTERFACE

BY_NAME = {case.name: case for case in CASES}
GENERIC = {case.name: case for case in GENERIC_CASES}
PROMPT = "The Eiffel Tower is in"
SMALL_BLOOM = {"n_layer": 1, "hidden_size": 8, "n_head": 2, "vocab_size": 10}
BAMBA = {"mamba_n_heads": 8, "mamba_d_head": 12, "attn_layer_indices": [1], "mamba_d_state": 8}
JAMBA = {"use_mamba_kernels": False, "num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1}
FALCON_H1 = {"mamba_d_ssm": 48, "mamba_n_heads": 8, "mamba_d_head": 6, "mamba_d_state": 8}
REFUSED = [
    ("BloomForCausalLM", SMALL_BLOOM, "BloomForCausalLM never calls transformers' attention interface"),
    ("FalconForCausalLM", OWN_KEYS, "FalconForCausalLM never calls"),
    ("JambaForCausalLM", {**BASE, **JAMBA}, r"without attention, or with several \(0, JambaMambaDecoderLayer\)"),
    ("RecurrentGemmaForCausalLM", {**BASE, "num_hidden_layers": 3, "lru_width": 48}, "layer without attention"),
    ("FalconH1ForCausalLM", {**BASE, **FALCON_H1}, "adds to the residual stream was not found in its FalconH1Decoder"),
    ("DiffLlamaForCausalLM", BASE, "or with several"),
    ("BertLMHeadModel", OWN_KEYS, "lets a token attend to later ones"),
    ("LlamaModel", BASE, "no vocabulary head"),
    ("BartForConditionalGeneration", {"vocab_size": 97, "d_model": 16}, "an encoder-decoder"),
]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Phi model with a tokenizer."""
    path = tmp_path_factory.mktemp("phi")
    build_generic(GENERIC["phi"]).save_pretrained(path)
    byte_level().save_pretrained(path)
    return path


@pytest.fixture
def copied(folder, tmp_path):
    """A folder of its own, to be spoilt."""
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def small(architecture, config):
    cls = getattr(transformers, architecture)
    return cls(cls.config_class(**config)).eval()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("architecture", "config", "reason"), REFUSED, ids=[each[0] for each in REFUSED])
def test_what_cannot_be_followed_is_refused_by_name(architecture, config, reason):
    with pytest.raises(ModelError, match=reason) as caught:
        AttentionMasker(small(architecture, config))
    assert "\n" not in str(caught.value)


def test_quantised_models_and_remote_code_are_refused():
    model = build_generic(GENERIC["phi"])
    model.config.quantization_config = {"quant_method": "bitsandbytes"}
    with pytest.raises(ModelError, match="PhiForCausalLM is quantised"):
        AttentionMasker(model)
    remote = type("Remote", (transformers.PhiForCausalLM,), {"__module__": "transformers_modules.somebody.code"})
    model = build_generic(GENERIC["phi"])
    model.__class__ = remote
    with pytest.raises(ModelError, match="Remote is remote code"):
        AttentionMasker(model)


def test_several_devices_are_refused():
    model = build_generic(GENERIC["phi"])
    model.model.layers[1].to("meta")
    with pytest.raises(ModelError, match="lie on cpu, meta"):
        AttentionMasker(model)


def test_a_mask_that_is_no_window_is_refused_where_it_matters():
    config = {**BASE, "attention_chunk_size": 8, "head_dim": 12, "num_local_experts": 2, "intermediate_size_mlp": 40}
    masker = AttentionMasker(small("Llama4ForCausalLM", config))
    assert masker.run([5, 6, 7]).height == 2 * 3 * 6
    with pytest.raises(ModelError, match="hides keys of this prompt beyond the causal order"):
        masker.run([*TOKENS])


def test_layers_that_mix_positions_behind_attention_are_refused(monkeypatch):
    model = build_generic(GENERIC["phi"])
    masker, forward = AttentionMasker(model), model.model.layers[1].mlp.forward
    monkeypatch.setattr(model.model.layers[1].mlp, "forward", lambda x: forward(x).cumsum(1))
    with pytest.raises(ModelError, match="layer 1 of PhiForCausalLM does not treat positions alike"):
        masker.run([*TOKENS])


def test_questions_that_the_route_does_not_answer():
    masker = AttentionMasker(build_generic(GENERIC["phi"]))
    for words in ({"read": "output"}, {"cut": "all"}, {"cut": "window:2", "read": "output"}):
        with pytest.raises(SelectionError, match="generic route, on which every layer is cut on its own"):
            masker.run([*TOKENS], **words)
    with pytest.raises(SelectionError, match="leave Result_h out"):
        masker.run([*TOKENS], sites=["Result_h"])


def test_routes_are_chosen():
    model = build_generic(GENERIC["phi"])
    assert AttentionMasker(model).route == "generic"
    assert AttentionMasker(build(BY_NAME["llama"])).route == "fused"
    with pytest.raises(ModelError, match="PhiForCausalLM is not supported; supported are"):
        AttentionMasker(model, route="fused")
    with pytest.raises(ModelError, match="no route 'slow'; choose auto, fused, generic"):
        AttentionMasker(model, route="slow")
    with pytest.raises(ModelError, match="runs its own layers"):
        _ = AttentionMasker(model).decoder


def test_a_folder_gives_what_the_model_in_memory_gives(folder):
    expected = AttentionMasker(build_generic(GENERIC["phi"]), byte_level()).run(PROMPT)
    masker = AttentionMasker.from_pretrained(str(folder), device="cpu")
    assert masker.route == "generic"
    assert masker.run(PROMPT).equals(expected)
    assert engine.run_masking_experiment(PROMPT, model=str(folder), device="cpu", route="generic").equals(expected)
    with pytest.raises(ModelError, match=r"'phi' .* is not supported on the fused path"):
        AttentionMasker.from_pretrained(str(folder), device="cpu", route="fused")


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_a_folder_is_loaded_in_the_dtype_that_is_asked_for(folder, dtype):
    masker = AttentionMasker.from_pretrained(str(folder), device="cpu", dtype=dtype)
    assert {p.dtype for p in masker.view.model.parameters()} == {getattr(torch, dtype)}
    assert masker.run(PROMPT)["l2_distance"].null_count() == 0


def test_incomplete_and_foreign_weights_are_refused(copied):
    weights = load_file(copied / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    for spoilt, reason in (
        ({key: value for key, value in weights.items() if key != name}, f"incomplete: 1 weights .* first {name}"),
        ({**weights, "model.layers.0.lora.weight": torch.ones(2)}, "does not account for, first model.layers.0.lora"),
        ({**weights, name: torch.ones(3, 3)}, "cannot load the model|misshapen"),
    ):
        save_file(spoilt, copied / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ModelError, match=reason):
            AttentionMasker.from_pretrained(str(copied), device="cpu")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ({"model_type": "bloom"}, "'bloom' .* not supported: its attention does not go through"),
        ({"model_type": "nonsense"}, "'nonsense' .* no causal language model of that type"),
        ({"quantization_config": {"quant_method": "gptq"}}, "is quantised"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_configs_that_are_refused(copied, words, reason):
    path = copied / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | words))
    with pytest.raises(ModelError, match=reason):
        AttentionMasker.from_pretrained(str(copied), device="cpu")


def test_pickled_weights_and_adapters_are_refused(copied):
    (copied / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="adapter"):
        AttentionMasker.from_pretrained(str(copied), device="cpu")
    (copied / "adapter_config.json").unlink()
    (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
    with pytest.raises(ModelError, match="no weights in safetensors"):
        AttentionMasker.from_pretrained(str(copied), device="cpu")


def test_the_command_line_says_which_route(folder, tmp_path, capsys):
    output = tmp_path / "impact.parquet"
    words = ["--prompt", PROMPT, "--device", "cpu", "--output", str(output)]
    assert main([*words, "--model", str(folder)]) == 0
    assert "2 layers x 4 heads, float32 on cpu, generic route" in capsys.readouterr().out
    assert main(words) == 0
    assert "float32 on cpu, fused route" in capsys.readouterr().out
    assert main([*words, "--route", "generic"]) == 0
    assert main(["analyze", str(output)]) == 0
    assert main([*words, "--model", str(folder), "--route", "fused"]) == 2
    assert main([*words, "--model", str(folder), "--read", "output"]) == 2
    assert "takes the generic route" in capsys.readouterr().err
    assert main(["verify", "--model", str(folder), "--device", "cpu"]) == 2
    assert "not supported on the fused path" in capsys.readouterr().err


def test_a_dataset_says_which_route_and_keeps_to_it(folder, tmp_path):
    prompts = {"a": PROMPT, "b": "Paris", "c": "The capital of France is"}
    masker = AttentionMasker.from_pretrained(str(folder), device="cpu")
    manifest = masker.run_dataset(prompts, tmp_path / "set")
    assert manifest["model"]["route"] == "generic"
    found = read_results(tmp_path / "set").filter(pl.col("prompt_id") == "a").collect()
    expected = masker.run(PROMPT)
    assert found["l2_distance"].to_list() == expected["l2_distance"].to_list()
    assert masker.run_dataset(prompts, tmp_path / "set")["counts"] == manifest["counts"]
    embedded = [AttentionMasker.from_pretrained(device="cpu", route=route) for route in ("fused", "generic")]
    embedded[0].run_dataset(prompts, tmp_path / "other")
    with pytest.raises(ResultsError, match="route"):
        embedded[1].run_dataset(prompts, tmp_path / "other")


def test_workers_take_the_route_as_well(folder, tmp_path):
    prompts = {"a": PROMPT, "b": "Paris"}
    masker = AttentionMasker.from_pretrained(str(folder), device="cpu")
    assert masker.run_dataset(prompts, tmp_path / "set", workers=1)["counts"]["prompts"] == 2


def test_the_fingerprint_tells_models_apart():
    def mark(model):
        from engine.model.fingerprint import fingerprint

        return fingerprint(AttentionMasker(model, route="generic").view)

    one, same, other = (build_generic(GENERIC["phi"], seed=seed) for seed in (0, 0, 1))
    assert mark(one) == mark(same) != mark(other)
    same.config.layer_norm_eps = 0.1
    assert mark(one) != mark(same)


def test_the_list_of_models(capsys):
    found = {each.model_type: each for each in engine.models()}
    routes = {name: found[name].route for name in ("qwen3", "phi", "opt", "bloom", "jamba", "falcon")}
    assert routes == {
        "qwen3": "fused",
        "phi": "generic",
        "opt": "generic",
        "bloom": None,
        "jamba": None,
        "falcon": None,
    }
    assert all(each.note for each in found.values() if each.route != "generic")
    assert found["bloom"].note == NO_INTERFACE
    assert found["jamba"].note == HYBRID
    served = {case.name.removesuffix("-parallel") for case in GENERIC_CASES}
    assert served <= {name for name, each in found.items() if each.route}
    assert main(["models"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in found)
    assert max(map(len, text.splitlines())) < 200
    assert main(["models", "--json"]) == 0
    assert {each["model_type"] for each in json.loads(capsys.readouterr().out)} == set(found)


def test_a_forward_that_fails_is_a_sentence():
    model = build_generic(GENERIC["phi"])
    model.model.layers[0].mlp.fc1 = torch.nn.Linear(3, 3)
    with pytest.raises(ImpactError, match="a forward of PhiForCausalLM fails"):
        AttentionMasker(model)


def test_weights_are_in_memory_of_their_own(copied):
    """transformers leaves them in the mapped file: what is written there would change the numbers, in silence."""
    masker, weights = AttentionMasker.from_pretrained(copied, device="cpu"), copied / "model.safetensors"
    before = masker.run([1, 2, 3])
    with weights.open("r+b") as file:
        file.seek(weights.stat().st_size // 4)
        file.write(bytes(weights.stat().st_size // 2))
    assert masker.run([1, 2, 3]).equals(before)


def test_weights_that_change_while_they_are_read_are_refused(copied, monkeypatch):
    weights, from_pretrained = copied / "model.safetensors", transformers.AutoModelForCausalLM.from_pretrained

    def slow(*args, **words):
        found = from_pretrained(*args, **words)
        os.utime(weights, (1, 1))
        return found

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", slow)
    with pytest.raises(ModelError, match="changed while they were read"):
        AttentionMasker.from_pretrained(copied, device="cpu")
