"""From a transformers model to a ``Decoder``: every weight is found by the name its family gives it, or refused.

The model is only read. A layer with a weight that the family does not account for, or with a projection that is not
a plain linear layer (quantised, adapted), would be measured wrongly in silence, so it is refused by name.
"""

import copy
from collections.abc import Callable, Sequence
from functools import lru_cache
from operator import attrgetter, is_
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.activations import ACT2FN

from engine.decoder import Attention, Decoder, GatedMLP, Heads, Layer
from engine.difference import SILU, Activation, RMSNorm, wide_difference
from engine.errors import ModelError
from engine.families import FAMILIES, Family
from engine.projection import Projection, joined_bias

WORKING_DTYPE = {
    torch.float64: torch.float64,
    torch.float32: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
}
"""Stored dtype of the weights -> dtype of the residual stream, of scores and of differences."""

RESCALING_ROPES = ("dynamic", "longrope")


def adopt(model: nn.Module) -> Decoder:
    """The uniform view on a transformers causal language model. Its tensors are shared, not copied.

    Raises ``ModelError`` for an architecture, a layer or a weight layout that is not supported.
    """
    family = family_of(model)
    config: Any = model.config
    embedding: Tensor = model.get_parameter(f"{family.embedding}.weight")
    dtype, device = _working_dtype(embedding.dtype), _only_device(model)
    _refuse_mixed_dtypes(model, family)
    layers = list(model.get_submodule(family.layers).children())[: config.num_hidden_layers]
    heads = Heads(config.num_attention_heads, config.num_key_value_heads, attrgetter(family.head_dim)(layers[0]))
    return Decoder(
        name=config.name_or_path or family.architecture,
        embedding=embedding.detach(),
        layers=tuple(_layer(family, config, index, layer, heads, dtype) for index, layer in enumerate(layers)),
        final_norm=_norm(family, model.get_submodule(family.final_norm), dtype),
        unembedding=_projection(model, [family.unembedding], dtype),
        rope=_rope(config, model.get_submodule(family.rotary), dtype, device),
        heads=heads,
        max_positions=_max_positions(config),
        dtype=dtype,
        device=device,
    )


class Edition:
    """The state of a model's weights at one moment, to notice when one is replaced or edited in place.

    It holds on to the weights it saw, so that no later one can take their place in memory and pass for them.
    """

    def __init__(self, model: nn.Module) -> None:
        held = [(m._parameters, *item) for m in model.modules() for item in m._parameters.items()]
        self._slots = [(parameters, name) for parameters, name, weight in held if weight is not None]
        self._seen = [weight for _, _, weight in held if weight is not None]
        # A tensor made in inference mode has no version.
        self._counted = [weight for weight in self._seen if not weight.is_inference()]
        self._marks = self._marks_now()

    def is_current(self) -> bool:
        """Whether every weight is still the same one, where it was, unedited."""
        now = (parameters.get(name) for parameters, name in self._slots)
        return all(map(is_, now, self._seen)) and self._marks_now() == self._marks

    def _marks_now(self) -> tuple[list[int], list[int]]:
        """Address of every weight, and version of those that have one."""
        return [weight.data_ptr() for weight in self._seen], [weight._version for weight in self._counted]


def family_of(model: nn.Module) -> Family:
    """The family of a transformers model, by its class. Raises ``ModelError`` for every other class."""
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"AttentionMasker takes a loaded transformers model, not {model!r}; "
            "AttentionMasker.from_pretrained takes a folder or a hub id"
        )
    kind = type(model)
    for family in FAMILIES.values():
        if kind.__name__ == family.architecture and kind.__module__.startswith("transformers."):
            return family
    known = ", ".join(family.architecture for family in FAMILIES.values())
    raise ModelError(f"the architecture {kind.__module__}.{kind.__name__} is not supported; supported are {known}")


def _layer(family: Family, config: Any, index: int, layer: nn.Module, heads: Heads, dtype: torch.dtype) -> Layer:
    _refuse_unknown_weights(family, layer, index)

    def norm(name: str) -> RMSNorm:
        return _norm(family, layer.get_submodule(name), dtype)

    return Layer(
        attn_norm=norm(family.attn_norm),
        attention=Attention(
            qkv=_projection(layer, [family.query, family.key, family.value], dtype),
            output=_projection(layer, [family.output], dtype),
            heads=heads,
            scale=attrgetter(family.scale)(layer),
            window=family.window(config, index),
            qk_norm=_qk_norm(norm(family.query_norm), norm(family.key_norm), heads)
            if family.query_norm and family.key_norm
            else None,
        ),
        mlp_norm=norm(family.mlp_norm),
        mlp=GatedMLP(
            gate_up=_projection(layer, [family.gate, family.up], dtype),
            down=_projection(layer, [family.down], dtype),
            activation=activation(config.hidden_act),
        ),
    )


def _refuse_mixed_dtypes(model: nn.Module, family: Family) -> None:
    """One dtype for all matrices; norms and biases may be wider."""
    dtypes = {p.dtype for p in model.parameters() if p.ndim > 1}
    if len(dtypes) > 1:
        names = ", ".join(sorted(str(dtype) for dtype in dtypes))
        raise ModelError(f"the weights of this {family.architecture} are of several dtypes ({names}); cast it to one")


def _refuse_unknown_weights(family: Family, layer: nn.Module, index: int) -> None:
    norms = [family.attn_norm, family.mlp_norm, family.query_norm, family.key_norm]
    linears = [family.query, family.key, family.value, family.output, family.gate, family.up, family.down]
    known = {f"{name}.weight" for name in norms if name} | {f"{n}.{p}" for n in linears for p in ("weight", "bias")}
    unknown = sorted({name for name, _ in layer.named_parameters()} - known)
    if unknown:
        raise ModelError(
            f"layer {index} holds a weight that {family.architecture} does not have: {unknown[0]}; "
            "merge adapters into the model first, and hand in no quantised one"
        )


def _projection(owner: nn.Module, names: Sequence[str], dtype: torch.dtype) -> Projection:
    linears: list[Any] = [owner.get_submodule(name) for name in names]
    for name, linear in zip(names, linears, strict=True):
        if type(linear) is not nn.Linear or linear.weight.dtype not in WORKING_DTYPE:
            raise ModelError(
                f"{name} is a {type(linear).__module__}.{type(linear).__name__}, not a plain linear layer; "
                "merge adapters first, and load the model without quantisation"
            )
    biases = [None if linear.bias is None else linear.bias.detach().to(dtype) for linear in linears]
    weights = tuple(linear.weight.detach() for linear in linears)
    return Projection(weights, joined_bias(biases, [len(weight) for weight in weights]))


def _norm(family: Family, module: Any, dtype: torch.dtype) -> RMSNorm:
    eps = module.eps if type(module) is nn.RMSNorm else getattr(module, family.norm_eps, None)
    if eps is None:
        raise ModelError(f"a {type(module).__name__} stands where {family.architecture} has an RMSNorm with an epsilon")
    weight = module.weight.detach().to(dtype)
    return RMSNorm(weight, weight.new_tensor(eps))


def _qk_norm(query: RMSNorm, key: RMSNorm, heads: Heads) -> RMSNorm:
    rows = (query.weight.expand(heads.num_heads, -1), key.weight.expand(heads.num_kv_heads, -1))
    return RMSNorm(torch.cat(rows), query.eps)


def activation(name: str) -> Activation:
    """The activation of that name: SiLU in closed form, any other by transformers' function in float64."""
    if name in ("silu", "swish"):
        return SILU
    function = ACT2FN[name]
    return Activation(name, function, wide_difference(function))


def _max_positions(config: Any) -> int:
    """The longest prompt; a dynamic rope stretches what the config says by its factor."""
    rope = config.rope_parameters
    factor = rope.get("factor", 1.0) if rope.get("rope_type") == "dynamic" else 1.0
    return int(config.max_position_embeddings * factor)


def _rope(
    config: Any, module: Any, dtype: torch.dtype, device: torch.device
) -> Callable[[int], tuple[Float[Tensor, "s d"], Float[Tensor, "s d"]]]:
    """The model's own rotary tables by prompt length.

    Some rope types rescale themselves by the longest prompt seen so far; they are made anew, and copied for every
    length, so the model stays as it was and a prompt's tables do not depend on the prompts before it.
    """
    rescaling = config.rope_parameters.get("rope_type") in RESCALING_ROPES
    pristine = type(module)(config).to(device) if rescaling else copy.deepcopy(module)

    @lru_cache(maxsize=8)
    def tables(num_positions: int) -> tuple[Float[Tensor, "s d"], Float[Tensor, "s d"]]:
        positions = torch.arange(num_positions, device=device)[None]
        cos, sin = copy.deepcopy(pristine)(torch.empty(0, dtype=dtype, device=device), positions)
        return cos[0], sin[0]

    return tables


def _working_dtype(stored: torch.dtype) -> torch.dtype:
    if stored not in WORKING_DTYPE:
        raise ModelError(f"weights of {stored} are not supported; load the model with dtype=torch.float32")
    return WORKING_DTYPE[stored]


def _only_device(model: nn.Module) -> torch.device:
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) != 1 or "meta" in {device.type for device in devices}:
        places = ", ".join(sorted(map(str, devices)))
        raise ModelError(f"the model's weights lie on {places}; load it whole onto one device, without device_map")
    return devices.pop()
