"""A transformers model lends its forward: it computes with an attention function of ours, and is afterwards as it was.

What changes meanwhile: two registered names, one word in its configurations, and the training flags of its modules.
Not for two threads at once over the same model: both would change the same word.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from typing import Any

from torch import nn

EAGER = "eager"
IMPLEMENTATION = "_attn_implementation_internal"
"""Where a configuration keeps the name of its attention; what its setter does besides, it does to sub-configurations,
which are visited here one by one."""
_NUMBERS = count()


@contextmanager
def borrowed(model: nn.Module, attend: Callable[..., Any] | None) -> Iterator[None]:
    """While it lasts, the model is in evaluation mode and calls ``attend`` for its attention; None is its own, eager.

    The mask function is that of eager attention: without one, transformers makes no mask at all.
    """
    with ExitStack() as undo:
        undo.enter_context(_evaluating(model))
        name = EAGER if attend is None else undo.enter_context(_registered(attend))
        undo.enter_context(_named(_configs(model), name))
        yield


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
def _named(configs: list[Any], name: str) -> Iterator[None]:
    before = [getattr(config, IMPLEMENTATION, None) for config in configs]
    try:
        for config in configs:
            setattr(config, IMPLEMENTATION, name)
        yield
    finally:
        for config, implementation in zip(configs, before, strict=True):
            setattr(config, IMPLEMENTATION, implementation)


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


def _configs(model: nn.Module) -> list[Any]:
    """The configurations of all modules and of their parts, each once."""
    waiting = [module.config for module in model.modules() if hasattr(module, "config")]
    found: dict[int, Any] = {}
    while waiting:
        config = waiting.pop()
        if id(config) in found or not hasattr(config, IMPLEMENTATION):
            continue
        found[id(config)] = config
        waiting += [getattr(config, name, None) for name in config.sub_configs]
    return list(found.values())
