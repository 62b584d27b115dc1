"""Right models are let pass whatever the process around them does, and are afterwards as they were."""

import pytest
import torch

from benchmarks.zoo import CASES, build
from engine import AttentionMasker
from engine.errors import ModelError

BY_NAME = {case.name: case for case in CASES}
KINDS = ("qwen3", "gemma-3", "gpt-oss", "qwen3-moe", "gpt-2")
PROMPT = [3, 5, 7, 9, 11]

pytestmark = pytest.mark.usefixtures("one_thread")
every_kind = pytest.mark.parametrize("kind", KINDS)


def table(model, **words):
    masker = AttentionMasker(model, **words)
    assert masker.checked
    return masker.run(PROMPT)


@pytest.fixture
def plainly():
    """The default device and dtype, put back."""
    yield
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("model", [None, "folder"])
def test_another_default_device_changes_nothing_of_files(model, plainly, tmp_path):
    build(BY_NAME["qwen3-yarn"]).save_pretrained(tmp_path)
    name = None if model is None else str(tmp_path)
    expected = AttentionMasker.from_pretrained(name, device="cpu").run(PROMPT)
    torch.set_default_device("meta")
    for words in ({}, {"stream": True}):
        masker = AttentionMasker.from_pretrained(name, device="cpu", **words)
        assert masker.run(PROMPT).equals(expected)
        assert len(list(masker.run_many([PROMPT, PROMPT[:3]]))) == 2


@every_kind
@pytest.mark.parametrize("size", [1e2, 1e4, 1e6])
def test_a_channel_that_dwarfs_all_others_passes(kind, size):
    """Trained models have such channels."""
    model = build(BY_NAME[kind])
    model.get_input_embeddings().weight.data[:, 3] = size
    table(model)


def test_a_compiled_module_is_the_module():
    model = build(BY_NAME["qwen3"])
    expected = table(model)
    assert table(torch.compile(model, backend="eager")).equals(expected)


@pytest.mark.parametrize("thing", [torch.nn.Sequential(*[torch.nn.Linear(2, 2)] * 50), ["a"] * 5_000, None])
@pytest.mark.parametrize("route", ["fused", "generic"])
def test_what_is_no_model_is_refused_in_a_line(thing, route):
    with pytest.raises(ModelError, match=r"takes a loaded transformers model, not a|is not supported") as caught:
        AttentionMasker(thing, route=route)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1_000


def test_sixty_layers_pass():
    case = BY_NAME["llama-biases"]
    table(build(type(case)(**{**vars(case), "config": case.config | {"num_hidden_layers": 60}})))
