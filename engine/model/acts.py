"""Activations by the names that transformers gives them."""

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from engine.errors import ModelError
from engine.kernels.activations import SILU, Activation, Gate, wide_difference


def activation(name: str) -> Activation:
    """The activation of that name: SiLU in closed form, any other by transformers' function in float64.

    Raises ``ModelError`` for a name that transformers does not know.
    """
    if name in ("silu", "swish"):
        return SILU
    # Imports a second's worth of modelling code, so only for those who need it.
    from transformers.activations import ACT2FN

    if name not in ACT2FN:
        raise ModelError(f"the activation {name!r} is not one of transformers'; check hidden_act in the config.json")
    function = ACT2FN[name]
    if isinstance(function, nn.Module) and function.state_dict():
        raise ModelError(f"the activation {name!r} has weights of its own, which is not supported")
    return Activation(name, function, wide_difference(function))


def clamped_gate(slope: float, limit: float) -> Gate:
    """Gates g·σ(slope·g), never above ``limit``, times 1 + up, which stays within it, in turns (gpt-oss)."""
    gate, up = partial(_clamped_swish, slope=slope, limit=limit), partial(_clamped_up, limit=limit)
    name = f"clamped swish {slope:g} {limit:g}"
    return Gate(
        Activation(name, gate, wide_difference(gate)), Activation("clamped up", up, wide_difference(up)), in_turns=True
    )


def _clamped_swish(x: Float[Tensor, "..."], *, slope: float, limit: float) -> Float[Tensor, "..."]:
    clamped = x.clamp(max=limit)
    return clamped * torch.sigmoid(clamped * slope)


def _clamped_up(x: Float[Tensor, "..."], *, limit: float) -> Float[Tensor, "..."]:
    return x.clamp(-limit, limit) + 1
