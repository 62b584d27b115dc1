"""Circumstances in which a right model must pass the self-check, and be left as it was."""

import threading

import pytest
import torch
import transformers
from tiny import CASES, build

from benchmarks.generic_cases import GENERIC_CASES, build_generic
from engine import AttentionMasker
from engine.kernels.products import exact_products
from engine.model.sources import quiet

QWEN = CASES[0]


def described():
    return build(QWEN)


def foreign():
    return build_generic(GENERIC_CASES[0])


BOTH = pytest.mark.parametrize("make", [described, foreign])


def state(model):
    """Whatever a check could leave behind."""
    modules = list(model.modules())
    return {
        "training": [module.training for module in modules],
        "attributes": [sorted(vars(module)) for module in modules],
        "hooks": [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in modules],
        "config": sorted((name, str(value)) for name, value in vars(model.config).items()),
        "parameters": [(p.requires_grad, p.grad, p._version) for p in model.parameters()],
        "random": torch.get_rng_state().tolist(),
        "dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "verbosity": transformers.utils.logging.get_verbosity(),
        "registered": sorted(transformers.AttentionInterface._global_mapping),
    }


@BOTH
@pytest.mark.parametrize(
    "asked", [{"output_attentions": True}, {"output_hidden_states": True}, {"return_dict": False}, {"use_cache": True}]
)
def test_what_a_config_asks_of_a_forward_is_not_asked_now(make, asked):
    """transformers would hook the modules for good, or give a tuple that its own forward trips over."""
    model = make()
    model.set_attn_implementation("eager")
    for name, value in asked.items():
        setattr(model.config, name, value)
    before = state(model)
    masker = AttentionMasker(model)
    assert masker.checked
    assert masker.run([1, 2, 3]).height
    assert state(model) == before


@BOTH
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_default_dtype_is_no_matter(make, dtype):
    model, right = make(), AttentionMasker(make()).run([1, 2, 3])
    torch.set_default_dtype(dtype)
    try:
        before = state(model)
        masker = AttentionMasker(model)
        assert masker.checked
        assert masker.run([1, 2, 3]).equals(right)
        assert state(model) == before
    finally:
        torch.set_default_dtype(torch.float32)


@BOTH
@pytest.mark.parametrize("check", [True, False])
def test_the_default_device_is_no_matter(make, check):
    """Helpers that are made without a device are wanted on the host: here they would have no numbers at all."""
    model = make()
    with torch.device("meta"):
        masker = AttentionMasker(model, check=check)
        assert masker.run([1, 2, 3]).height
        assert torch.empty(0).is_meta


@BOTH
def test_autocast_is_no_matter(make):
    model, right = make(), AttentionMasker(make()).run([1, 2, 3])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        masker = AttentionMasker(model)
        assert masker.checked
        assert masker.run([1, 2, 3]).equals(right)
        assert torch.is_autocast_enabled("cpu")


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
@BOTH
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_the_callers_mode_is_no_matter(make, mode):
    model = make().train()
    model.gradient_checkpointing_enable()
    with mode():
        before = state(model)
        assert AttentionMasker(model).checked
        assert state(model) == before


@BOTH
def test_a_compiled_model_is_not_compiled_now(make):
    """A probe of a few tokens would wait minutes for a kernel."""
    model = make()
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    model.compile(backend=backend)
    masker = AttentionMasker(model)
    assert masker.checked
    assert masker.run([1, 2, 3]).height
    assert not compiled
    assert model._compiled_call_impl is not None


@BOTH
def test_two_threads_make_maskers_of_one_model(make):
    """Both borrow it, and both keep the libraries quiet: what is put back last must be what was there first."""
    model = make()
    before, found = state(model), []

    def work():
        for _ in range(8):
            try:
                found.append(AttentionMasker(model).run([1, 2, 3]))
            except BaseException as error:
                found.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 24
    assert all(getattr(each, "height", 0) and each.equals(found[0]) for each in found), found
    assert state(model) == before


@pytest.mark.parametrize("setting", [quiet, lambda: exact_products(torch.device("cpu"))])
def test_a_setting_of_the_process_ends_with_its_last_holder(setting):
    def now():
        rounds = torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
        return transformers.utils.logging.get_verbosity(), rounds

    before, one, other = now(), setting(), setting()
    one.__enter__()
    inside = now()
    other.__enter__()
    one.__exit__(None, None, None)
    assert now() == inside != before
    other.__exit__(None, None, None)
    assert now() == before
