"""A transformers model lends its forward: it computes with an attention function of ours, and is afterwards as it was.

What changes meanwhile: two registered names, a few words in its configurations, the training flags of its modules, and
what its ropes remember.
Of several threads over the same model one borrows it at a time: all would change the same words.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import count
from sys import modules
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from engine.model.assembly import RESCALING_ROPES
from engine.sharing import Shared

EAGER = "eager"
ATTENTION, EXPERTS = "_attn_implementation_internal", "_experts_implementation_internal"
"""Where a configuration keeps the names of its attention and of its experts; what their setters do besides, they do to
sub-configurations, which are visited here one by one."""
WANTED = {"_output_attentions": False, "output_hidden_states": False, "return_dict": True}
"""What a configuration may ask a forward to give: no more than the stream and logits, by name. For patterns and streams
transformers would leave hooks on the modules for good."""
ORIGINAL = "original_inv_freq"
"""Of a rotary module, the end of the names of its frequencies before any rescaling."""
_NUMBERS = count()
_TURNS: WeakKeyDictionary[nn.Module, AbstractContextManager[Any]] = WeakKeyDictionary()
_TURNS_TURN = RLock()
_uncompiled = Shared(lambda: torch.compiler.set_stance("force_eager"))


@contextmanager
def borrowed(model: nn.Module, attend: Callable[..., Any] | None, *, plain_experts: bool = False) -> Iterator[None]:
    """While it lasts, the model is in evaluation mode and calls ``attend`` for its attention; None is its own, eager.

    The mask function is that of eager attention: without one, transformers makes no mask at all. Gradients are off, but
    not by inference mode: a model may keep a tensor that it makes, and could never again train with one of that mode.
    ``plain_experts`` are computed one by one: the other kernels know neither float64 nor every width. What of it was
    compiled runs as it was written: compiling takes minutes, and knows nothing of what changes here.
    """
    with ExitStack() as undo:
        undo.enter_context(_turn(model))
        if "torch._dynamo" in modules:  # else nothing is compiled
            undo.enter_context(_uncompiled())
        undo.enter_context(torch.inference_mode(mode=False))
        undo.enter_context(torch.no_grad())
        undo.enter_context(_evaluating(model))
        undo.enter_context(_forgetful(model))
        name = EAGER if attend is None else undo.enter_context(_registered(attend))
        configs = _configs(model)
        undo.enter_context(_named(configs, ATTENTION, name))
        for what, value in WANTED.items():
            undo.enter_context(_named(configs, what, value))
        if plain_experts or any(parameter.dtype == torch.float64 for parameter in model.parameters()):
            undo.enter_context(_named(configs, EXPERTS, EAGER))
        yield


def _turn(model: nn.Module) -> AbstractContextManager[Any]:
    """What a thread holds while it borrows the model; it may borrow it again."""
    with _TURNS_TURN:
        return _TURNS.setdefault(model, RLock())


@contextmanager
def _registered(attend: Callable[..., Any]) -> Iterator[str]:
    """A name of its own in both registries."""
    from transformers.masking_utils import AttentionMaskInterface, eager_mask
    from transformers.modeling_utils import AttentionInterface

    name = f"mask-impact-{next(_NUMBERS)}"
    try:
        AttentionInterface.register(name, attend)
        AttentionMaskInterface.register(name, eager_mask)
        yield name
    finally:
        AttentionInterface._global_mapping.pop(name, None)
        AttentionMaskInterface._global_mapping.pop(name, None)


@contextmanager
def _named(configs: list[Any], what: str, value: str | bool) -> Iterator[None]:
    before = [(config, getattr(config, what)) for config in configs if hasattr(config, what)]
    try:
        for config, _ in before:
            setattr(config, what, value)
        yield
    finally:
        for config, own in before:
            setattr(config, what, own)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _forgetful(model: nn.Module) -> Iterator[None]:
    """Ropes that rescale themselves by the longest prompt so far start as new ones, and get their memory back."""
    ropes = [module for module in model.modules() if _is_rescaling(module)]
    before = [(vars(module).copy(), module._buffers.copy()) for module in ropes]
    try:
        for module in ropes:
            _forget(module)
        yield
    finally:
        for module, (state, buffers) in zip(ropes, before, strict=True):
            vars(module).clear()
            vars(module).update({**state, "_buffers": buffers})


def _is_rescaling(module: nn.Module) -> bool:
    """Whether transformers' ``dynamic_rope_update`` changes the module, whose types may go by the kind of layer."""
    kinds = getattr(module, "rope_type", None)
    named = kinds.values() if isinstance(kinds, dict) else [kinds]
    return hasattr(module, "original_max_seq_len") and any(kind in RESCALING_ROPES for kind in named)


def _forget(module: Any) -> None:
    """The frequencies and the longest prompt of a new module, in tensors of their own: some are written in place."""
    for name, original in list(module.named_buffers(recurse=False)):
        if name.endswith(ORIGINAL):
            module.register_buffer(name.removesuffix(ORIGINAL) + "inv_freq", original.clone(), persistent=False)
    for name in [name for name in vars(module) if name.endswith("max_seq_len_cached")]:
        setattr(module, name, module.original_max_seq_len)


def _configs(model: nn.Module) -> list[Any]:
    """The configurations of all modules and of their parts, each once."""
    waiting: list[Any] = [module.config for module in model.modules() if hasattr(module, "config")]
    found: dict[int, Any] = {}
    while waiting:
        config = waiting.pop()
        if id(config) in found or not hasattr(config, ATTENTION):
            continue
        found[id(config)] = config
        waiting += [getattr(config, name, None) for name in config.sub_configs]
    return list(found.values())
