"""The float64 oracle: a copy of a Hugging Face model that computes in float64 throughout."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel


class NoNarrowing(TorchFunctionMode):
    """While it is active, float64 tensors are not made float32, neither by a cast nor by a ``dtype=`` argument."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if args and isinstance(args[0], Tensor) and args[0].dtype == torch.float64:
            target = (*args[1:], named.get("dtype"))
            if func is Tensor.float or (
                func in (Tensor.to, Tensor.type) and any(each is torch.float32 for each in target)
            ):
                return args[0]
            if named.get("dtype") is torch.float32:
                del named["dtype"]
        return func(*args, **named)


def float64_model(model: PreTrainedModel) -> PreTrainedModel:
    """A float64 copy of the model on the CPU, in evaluation mode; the model itself stays as it is.

    ``.double()`` alone does not do that. Whatever they are given, Hugging Face's RMSNorms, the softmax of its eager
    attention and its routers compute in float32, and either leaves errors of 1e-7. The copy runs with these casts left
    out, under eager attention, which is the one that knows soft caps and sinks. The rotary tables stay what they are by
    definition: computed in float32, then widened.
    """
    wide = copy.deepcopy(model).cpu().double().eval()
    wide.set_attn_implementation("eager")
    wide.set_experts_implementation("eager")  # the other ones multiply no float64
    for name, module in model.named_modules():
        if name.endswith("rotary_emb"):
            wide.set_submodule(name, copy.deepcopy(module).cpu())
    for part in wide.modules():  # of which any may be called by itself
        part.register_forward_pre_hook(_enter)
        part.register_forward_hook(_leave, always_call=True)
    return wide


_ACTIVE: list[NoNarrowing | None] = []
"""The mode of the outermost module that runs, and None for each within."""


def _enter(module: nn.Module, args: Any) -> None:
    _ACTIVE.append(None if _ACTIVE else NoNarrowing())
    if _ACTIVE[-1] is not None:
        _ACTIVE[-1].__enter__()


def _leave(module: nn.Module, args: Any, output: Any) -> None:
    mode = _ACTIVE.pop()
    if mode is not None:
        mode.__exit__(None, None, None)
