"""The self-check at load: faults that it must find, models that it must not refuse, and what is said of it."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from einops import rearrange
from safetensors.torch import load_file
from tiny import CASES, build

import engine.sweeps.sweep
from benchmarks.generic_cases import GENERIC_CASES, build_generic
from benchmarks.zoo import CASES as ZOO
from benchmarks.zoo import build as build_zoo
from engine import AttentionMasker
from engine.checks.account import Probing
from engine.checks.oracles import CHECKED_CELLS, oracle_of
from engine.checks.record import record_path
from engine.checks.recording import recorded
from engine.checks.selfcheck import self_check
from engine.commands import main
from engine.errors import CheckError, ModelError
from engine.model.loading import load_view


@pytest.fixture(scope="module")
def demo():
    return load_view(None, device="cpu")[0]


def with_layer(decoder, index, **changes):
    layers = [replace(layer, **changes) if at == index else layer for at, layer in enumerate(decoder.layers)]
    return replace(decoder, layers=tuple(layers))


def with_attention(decoder, index, **changes):
    return with_layer(decoder, index, attention=replace(decoder.layers[index].attention, **changes))


def heavier(projection):
    """The same projection whose first weight is 1 % too large."""
    other = copy.copy(projection)
    other.weights = (projection.weights[0] * 1.01, *projection.weights[1:])
    return other


FAULTS = {
    "scale": lambda d: with_attention(d, 2, scoring=replace(d.layers[2].attention.scoring, scale=0.18)),
    "soft cap": lambda d: with_attention(d, 2, scoring=replace(d.layers[2].attention.scoring, soft_cap=50.0)),
    "window": lambda d: with_attention(d, 2, window=3),
    "no query and key norms": lambda d: with_attention(d, 2, qk_norm=None),
    "no rope": lambda d: with_attention(d, 2, rope=None),
    "multiplier": lambda d: with_layer(d, 2, multiplier=1.01),
    "parallel": lambda d: with_layer(d, 2, parallel=True),
    "norm behind": lambda d: with_layer(d, 2, mlp_post_norm=d.layers[2].mlp_norm),
    "other norm": lambda d: with_layer(d, 2, attn_norm=d.layers[1].attn_norm),
    "output weight": lambda d: with_attention(d, 2, output=heavier(d.layers[2].attention.output)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_layer_is_named(demo, fault):
    with pytest.raises(CheckError, match="failed in layer 2"):
        self_check(FAULTS[fault](demo), None)


def test_wrong_ends_are_found(demo):
    scaled = replace(demo, embedding=replace(demo.embedding, scale=1.02))
    with pytest.raises(CheckError, match="failed in layer 0: the streams that enter"):
        self_check(scaled, None)
    capped = replace(demo, unembedding=replace(demo.unembedding, soft_cap=10.0))
    with pytest.raises(CheckError, match="failed outside of the layers: the logits"):
        self_check(capped, None)


@pytest.mark.parametrize("name", ["llama-llama3-rope", "qwen3-yarn"])
def test_frequencies_that_differ_far_away_are_found(tmp_path, name):
    """A scaled rope that is read as a plain one: the first positions hardly tell."""
    case = next(case for case in ZOO if case.name == name)
    build_zoo(case).save_pretrained(tmp_path)
    view, _ = load_view(tmp_path, device="cpu")
    assert self_check(view, None)

    def slightly_other(num_positions):
        angles = torch.arange(num_positions)[:, None].double()
        cos, sin = view.ropes["default"](num_positions)
        turned = torch.complex(cos.double(), sin.double()) * torch.exp(1j * angles * 3e-3)
        return turned.real.float(), turned.imag.float()

    with pytest.raises(CheckError, match=r"rotary tables \(default\)"):
        self_check(replace(view, ropes={"default": slightly_other}), None)


def test_a_mask_that_does_not_bite_is_found(monkeypatch, demo):
    right = engine.sweeps.sweep.joint_z

    def without_mask(*args, copies, **kwargs):
        z = right(*args, copies=copies, **kwargs)
        z[copies.num_baseline :] = 0
        return z

    monkeypatch.setattr(engine.sweeps.sweep, "joint_z", without_mask)
    with pytest.raises(CheckError, match="changes by a mask"):
        self_check(demo, None)


def test_heads_in_another_order_are_found(monkeypatch, demo):
    right = engine.sweeps.sweep.joint_z

    def other_order(q, *args, **kwargs):
        return right(rearrange(q, "s (kv g) d -> s (g kv) d", kv=2), *args, **kwargs)

    monkeypatch.setattr(engine.sweeps.sweep, "joint_z", other_order)
    with pytest.raises(CheckError, match="the heads' outputs"):
        self_check(demo, None)


def test_weight_on_a_hidden_token_is_found(monkeypatch, demo):
    import engine.checks.account as account

    monkeypatch.setattr(account, "softmax", lambda scores, sink: torch.softmax(scores.clamp(min=-1e4), -1) + 1e-30)
    with pytest.raises(CheckError, match="keeps some weight"):
        self_check(demo, None)


def test_a_model_whose_forward_was_changed_is_refused():
    """The class and the config say one thing, the forward does another."""
    model = build(CASES[0])
    right = model.model.layers[1].mlp.forward
    model.model.layers[1].mlp.forward = lambda x: 1.1 * right(x)
    with pytest.raises(CheckError, match="failed in layer 1"):
        AttentionMasker(model)
    masker = AttentionMasker(model, check=False)
    assert not masker.checked
    assert masker.run([1, 2, 3]).height


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # older modelling files of transformers
@pytest.mark.parametrize("case", GENERIC_CASES, ids=lambda case: case.name)
def test_models_of_the_generic_route_pass(case):
    assert AttentionMasker(build_generic(case)).checked


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("case", CASES[::6], ids=lambda case: case.name)
def test_checkpoints_pass(tmp_path, case, stream, dtype):
    build(case).save_pretrained(tmp_path)
    assert AttentionMasker.from_pretrained(tmp_path, device="cpu", dtype=dtype, stream=stream).checked


def test_large_models_are_checked_up_to_every_kind_of_layer(tmp_path, monkeypatch):
    case = next(case for case in CASES if case.name == "qwen3-window")
    build(case).save_pretrained(tmp_path)
    view, _ = load_view(tmp_path, device="cpu")
    assert oracle_of(view, None, Probing.of(view)).num_layers == len(view.layers) == 3
    monkeypatch.setattr("engine.checks.oracles.CHECKED_CELLS", 0)
    assert CHECKED_CELLS > 0
    assert oracle_of(view, None, Probing.of(view)).num_layers == 2  # the first has no window, the second has one
    assert self_check(view, None)


def test_a_model_that_transformers_cannot_build_is_refused_in_a_line(tmp_path):
    """The engine has no use for the padding token, which transformers insists on finding in its vocabulary."""
    build(CASES[0]).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"pad_token_id": 5000}))
    with pytest.raises(ModelError, match="Padding_idx must be within"):
        AttentionMasker.from_pretrained(tmp_path, device="cpu")
    assert not AttentionMasker.from_pretrained(tmp_path, device="cpu", check=False).checked


def test_what_is_not_finite_is_left_to_the_run():
    """It names the layer; the check has nothing to compare with."""
    model = build(CASES[0])
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    assert AttentionMasker(model).checked


def test_a_held_model_is_as_it_was():
    model = build(CASES[0]).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    AttentionMasker(model)
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("positions", [2, 3, 8, 64])
def test_a_dynamic_rope_may_have_read_any_prompt(positions):
    """One that has read a longer prompt keeps its frequencies at just as many positions as the config names."""
    rope = {"rope_type": "dynamic", "rope_theta": 10.0, "factor": 4.0}
    case = next(case for case in ZOO if case.family == "Llama")
    case = replace(case, config=case.config | {"max_position_embeddings": positions, "rope_parameters": rope})
    model = build_zoo(case)
    model(torch.arange(4 * positions)[None] % 7)
    assert AttentionMasker(model).checked


def test_the_record_is_what_transformers_says_today():
    stored, told = load_file(record_path()), recorded()
    assert stored.keys() == told.keys()
    for name, tensor in stored.items():
        torch.testing.assert_close(told[name], tensor, rtol=1e-4, atol=1e-5)


def test_no_check_is_said_everywhere(tmp_path, capsys):
    table, page, dataset = tmp_path / "t.parquet", tmp_path / "page.html", tmp_path / "set"
    (tmp_path / "prompts.txt").write_text("The Eiffel Tower is in\n")
    assert (
        main(["--prompt", "The Eiffel Tower is in", "--no-check", "--output", str(table), "--report", str(page)]) == 0
    )
    assert ", unchecked" in capsys.readouterr().out
    assert "skipped (--no-check)" in page.read_text()
    assert main(["analyze", str(table)]) == 0
    assert "not held against transformers" in capsys.readouterr().out
    many = ["--prompts", str(tmp_path / "prompts.txt"), "--output", str(dataset)]
    assert main([*many, "--no-check"]) == 0
    assert json.loads((dataset / "manifest.json").read_text())["checked"] is False
    assert main([*many, "--overwrite"]) == 0
    assert json.loads((dataset / "manifest.json").read_text())["checked"] is True
    assert main([*many, "--no-check"]) == 0  # nothing was left to do, and what is there was checked
