"""Soft caps: a cap c bends x to c·tanh(x / c) (Gemma 2, arXiv 2408.00118)."""

import torch
from jaxtyping import Float
from torch import Tensor


def bent(x: Float[Tensor, "..."], cap: float | None) -> Float[Tensor, "..."]:
    """x under the cap, if there is one."""
    return x if cap is None else torch.tanh(x / cap).mul_(cap)


def bent_shift(x: Float[Tensor, "..."], shift: Float[Tensor, "..."], cap: float | None) -> Float[Tensor, "..."]:
    """How far the bent x moves when x moves by ``shift``.

    tanh(x + y) - tanh(x) = tanh(y)·(1 - tanh(x)·tanh(x + y)), in which a small y keeps its digits.
    """
    if cap is None:
        return shift
    bends = 1 - torch.tanh(x / cap) * torch.tanh((x + shift) / cap)
    return torch.tanh(shift / cap).mul_(bends).mul_(cap)
