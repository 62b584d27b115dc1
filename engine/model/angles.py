"""Rotary tables by prompt length: computed from a config, or by a model's own rotary module.

Most rope types have one frequency per channel pair, which transformers computes without its modelling code. Some
rescale themselves by the prompt; those are left to the family's own module, which is imported for them alone. Axes:
``s`` position, ``d`` head channel.
"""

import copy
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from engine.errors import ModelError
from engine.model.families import Family, head_dim

Rope = Callable[[int], tuple[Float[Tensor, "s d"], Float[Tensor, "s d"]]]
"""Prompt length -> cosines and sines."""

FIXED_ROPES = ("default", "linear", "llama3", "yarn")
RESCALING_ROPES = ("dynamic", "longrope")


def configured_rope(family: Family, config: Any, dtype: torch.dtype, device: torch.device) -> Rope:
    """The tables that the family's rotary module would make, in ``dtype``. Raises ``ModelError`` for other ropes."""
    kind = config.rope_parameters.get("rope_type", "default")
    if kind not in (*FIXED_ROPES, *RESCALING_ROPES):
        raise ModelError(f"the rope type {kind!r} is not supported; {', '.join(FIXED_ROPES + RESCALING_ROPES)} are")
    try:
        if kind in RESCALING_ROPES:
            return module_rope(_rotary_class(family)(config), config, dtype, device)
        frequencies, scaling = _default(config) if kind == "default" else ROPE_INIT_FUNCTIONS[kind](config)
    except (KeyError, TypeError, ValueError, ZeroDivisionError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ModelError(f"the {kind} rope of the config.json cannot be computed ({reason}); check it") from error
    if 2 * len(frequencies) != head_dim(config):
        raise ModelError(f"the {kind} rope turns only a part of each head, which is not supported")
    return _fixed_rope(frequencies.to(device), scaling, dtype)


def module_rope(module: nn.Module, config: Any, dtype: torch.dtype, device: torch.device) -> Rope:
    """The tables of a model's own rotary module.

    Some rope types rescale themselves by the longest prompt seen so far; they are made anew, and copied for every
    length, so the model stays as it was and a prompt's tables do not depend on the prompts before it.
    """
    rescaling = config.rope_parameters.get("rope_type") in RESCALING_ROPES
    pristine: Any = type(module)(config).to(device) if rescaling else copy.deepcopy(module)

    @lru_cache(maxsize=8)
    def tables(num_positions: int) -> tuple[Float[Tensor, "s d"], Float[Tensor, "s d"]]:
        positions = torch.arange(num_positions, device=device)[None]
        cos, sin = copy.deepcopy(pristine)(torch.empty(0, dtype=dtype, device=device), positions)
        return cos[0], sin[0]

    return tables


def _default(config: Any) -> tuple[Float[Tensor, " pair"], float]:
    """Frequencies theta^(-2i/d) (Su et al. 2021, arXiv 2104.09864), in the order of operations of transformers."""
    dim = head_dim(config)
    exponents = torch.arange(0, dim, 2, dtype=torch.float) / dim
    return 1.0 / (config.rope_parameters["rope_theta"] ** exponents), 1.0


def _fixed_rope(frequencies: Float[Tensor, " pair"], scaling: float, dtype: torch.dtype) -> Rope:
    """Tables of frequencies that hold for every prompt; made in float32 and cast, as transformers does."""

    @lru_cache(maxsize=8)
    def tables(num_positions: int) -> tuple[Float[Tensor, "s d"], Float[Tensor, "s d"]]:
        positions = torch.arange(num_positions, device=frequencies.device)
        angles = positions[:, None].float() * frequencies
        both = torch.cat((angles, angles), dim=-1)
        return (both.cos() * scaling).to(dtype), (both.sin() * scaling).to(dtype)

    return tables


def _rotary_class(family: Family) -> Any:
    """The family's rotary module; importing it takes about a second."""
    modelling = import_module(f"transformers.models.{family.model_type}.modeling_{family.model_type}")
    return getattr(modelling, family.architecture.removesuffix("ForCausalLM") + "RotaryEmbedding")
