"""Rotary tables by prompt length: computed from a config, or by a model's own rotary module.

Most rope types have one frequency per channel pair, which transformers computes without its modelling code. Some
rescale themselves by the prompt; those are left to the family's own module, which is imported for them alone. Axes:
``s`` position, ``d`` turning channel of a head.
"""

import copy
from functools import lru_cache
from importlib import import_module
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from engine.errors import ModelError
from engine.model.assembly import RESCALING_ROPES
from engine.model.decoder import Rope
from engine.model.families import Family, head_dim

FIXED_ROPES = ("default", "linear", "llama3", "yarn")


def configured_ropes(family: Family, config: Any, dtype: torch.dtype, device: torch.device) -> dict[str, Rope]:
    """The tables that the family's rotary module would make, in ``dtype``. Raises ``ModelError`` for other ropes."""
    named = family.ropes(config)
    return {name: _configured(family, config, name, rope, dtype, device) for name, rope in named.items()}


def module_ropes(
    family: Family, module: nn.Module | None, config: Any, dtype: torch.dtype, device: torch.device
) -> dict[str, Rope]:
    """The tables of a model's own rotary module."""
    if module is None:
        return {}
    return {
        name: _module_rope(family, module, config, _kind_of_layer(config, name), dtype, device)
        for name in family.ropes(config)
    }


def _configured(
    family: Family, config: Any, name: str, rope: dict[str, Any], dtype: torch.dtype, device: torch.device
) -> Rope:
    kind, of_kind = rope.get("rope_type", "default"), _kind_of_layer(config, name)
    if kind not in (*FIXED_ROPES, *RESCALING_ROPES):
        raise ModelError(f"the rope type {kind!r} is not supported; {', '.join(FIXED_ROPES + RESCALING_ROPES)} are")
    try:
        with torch.device("cpu"):  # what transformers makes lies on the default device, whatever that is
            if kind in RESCALING_ROPES:
                return _module_rope(family, rotary_module(rotary_class(family), config), config, of_kind, dtype, device)
            if kind == "default":
                frequencies, scaling = _default(family, config, rope)
            else:
                frequencies, scaling = ROPE_INIT_FUNCTIONS[kind](config, **of_kind)
    except (KeyError, TypeError, ValueError, ZeroDivisionError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ModelError(f"the {kind} rope of the config.json cannot be computed ({reason}); check it") from error
    if 2 * len(frequencies) != head_dim(config) and not family.partial_rope:
        raise ModelError(f"the {kind} rope turns only a part of each head, which is not supported")
    return _fixed_rope(frequencies.to(device), scaling, dtype)


def _module_rope(
    family: Family, module: nn.Module, config: Any, of_kind: dict[str, str], dtype: torch.dtype, device: torch.device
) -> Rope:
    """The tables of a rotary module.

    Some rope types rescale themselves by the longest prompt seen so far; they are made anew, and copied for every
    length, so the model stays as it was and a prompt's tables do not depend on the prompts before it.
    """
    rescaling = any(rope.get("rope_type") in RESCALING_ROPES for rope in family.ropes(config).values())
    pristine: Any = rotary_module(type(module), config).to(device) if rescaling else copy.deepcopy(module)

    @lru_cache(maxsize=8)
    def tables(num_positions: int) -> tuple[Float[Tensor, "s d"], Float[Tensor, "s d"]]:
        positions = torch.arange(num_positions, device=device)[None]
        pair = copy.deepcopy(pristine)(torch.empty(0, dtype=dtype, device=device), positions, **of_kind)
        cos, sin = (table[0].to(dtype) for table in pair)
        return (torch.cat((cos, cos), -1), torch.cat((sin, sin), -1)) if family.half_tables else (cos, sin)

    return tables


def _kind_of_layer(config: Any, name: str) -> dict[str, str]:
    """What a rotary module of several ropes is asked with."""
    return {"layer_type": name} if name in config.rope_parameters else {}


def _default(family: Family, config: Any, rope: dict[str, Any]) -> tuple[Float[Tensor, " pair"], float]:
    """Frequencies theta^(-2i/d) (Su et al. 2021, arXiv 2104.09864), in the order of operations of transformers."""
    part = rope.get("partial_rotary_factor", 1.0) if family.partial_rope else 1.0
    dim = int(head_dim(config) * part)
    exponents = torch.arange(0, dim, 2, dtype=torch.float, device="cpu") / dim
    return 1.0 / (rope["rope_theta"] ** exponents), 1.0


def _fixed_rope(frequencies: Float[Tensor, " pair"], scaling: float, dtype: torch.dtype) -> Rope:
    """Tables of frequencies that hold for every prompt; made in float32 and cast, as transformers does."""

    @lru_cache(maxsize=8)
    def tables(num_positions: int) -> tuple[Float[Tensor, "s d"], Float[Tensor, "s d"]]:
        positions = torch.arange(num_positions, device=frequencies.device)
        angles = positions[:, None].float() * frequencies
        both = torch.cat((angles, angles), dim=-1)
        return (both.cos() * scaling).to(dtype), (both.sin() * scaling).to(dtype)

    return tables


def rotary_module(kind: Any, config: Any) -> Any:
    """A rotary module of that class in the machine's memory, whatever the default device is."""
    with torch.device("cpu"):
        return kind(config)


def rotary_class(family: Family) -> Any:
    """The family's rotary module; importing it takes about a second."""
    modelling = import_module(f"transformers.models.{family.modelling}.modeling_{family.modelling}")
    return getattr(modelling, family.architecture.removesuffix("ForCausalLM") + "RotaryEmbedding")
