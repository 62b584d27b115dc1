"""Family, config and named weights -> ``Decoder``: the one place where a weight's name becomes its meaning.

The weights come from a model in memory or from files, one at a time and in the order in which a pass needs them. What
is not a weight (epsilons, scales, the size of a head) comes as ``Constants``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import ModelError
from engine.kernels.difference import SILU, Activation, RMSNorm, wide_difference
from engine.kernels.projection import Projection, joined_bias
from engine.model.angles import RESCALING_ROPES, Rope
from engine.model.decoder import Attention, Decoder, GatedMLP, Heads, Layer
from engine.model.families import Family, head_dim

WORKING_DTYPE = {
    torch.float64: torch.float64,
    torch.float32: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
}
"""Stored dtype of the weights -> dtype of the residual stream, of scores and of differences."""


@dataclass(frozen=True)
class Constants:
    """Numbers of a model that are no weights: ``scales`` of the scores, one per layer; epsilons by the norm's name."""

    head_dim: int
    scales: Sequence[float]
    eps: Callable[[str], float]


def configured_constants(config: Any) -> Constants:
    """The constants that transformers gives a model of that config."""
    size = head_dim(config)
    return Constants(size, [size**-0.5] * config.num_hidden_layers, lambda name: config.rms_norm_eps)


def assemble(
    family: Family, config: Any, weights: Mapping[str, Tensor], *, constants: Constants, rope: Rope, name: str
) -> Decoder:
    """The decoder of these weights, which are shared, not copied; without an unembedding, the embedding serves as one.

    Raises ``ModelError`` for no layers at all, and for an activation or a kind of attention that is not supported.
    """
    embedding = weights[f"{family.embedding}.weight"]
    dtype = WORKING_DTYPE[embedding.dtype]
    heads = Heads(config.num_attention_heads, config.num_key_value_heads, constants.head_dim)
    act = activation(config.hidden_act)
    untied = f"{family.unembedding}.weight" in weights
    parts = _Parts(family, weights, constants, dtype)
    layers = range(len(constants.scales))
    if not layers:
        raise ModelError(f"the model {name!r} has no layers; check num_hidden_layers in its config")
    return Decoder(
        name=name,
        embedding=embedding,
        layers=tuple(parts.layer(index, heads, family.window(config, index), act) for index in layers),
        final_norm=parts.norm(family.final_norm),
        unembedding=parts.projection(family.unembedding) if untied else Projection((embedding,)),
        rope=rope,
        heads=heads,
        max_positions=_max_positions(config),
        dtype=dtype,
        device=embedding.device,
        rope_by_length=config.rope_parameters.get("rope_type") in RESCALING_ROPES,
    )


@dataclass(frozen=True)
class _Parts:
    """Parts of a decoder, made of named weights."""

    family: Family
    weights: Mapping[str, Tensor]
    constants: Constants
    dtype: torch.dtype

    def layer(self, index: int, heads: Heads, window: int | None, act: Activation) -> Layer:
        family, at = self.family, f"{self.family.layers}.{index}."
        return Layer(
            attn_norm=self.norm(at + family.attn_norm),
            attention=Attention(
                qkv=self.projection(at + family.query, at + family.key, at + family.value),
                output=self.projection(at + family.output),
                heads=heads,
                scale=self.constants.scales[index],
                window=window,
                qk_norm=self.qk_norm(at, heads),
            ),
            mlp_norm=self.norm(at + family.mlp_norm),
            mlp=GatedMLP(
                gate_up=self.projection(at + family.gate, at + family.up),
                down=self.projection(at + family.down),
                activation=act,
            ),
        )

    def projection(self, *names: str) -> Projection:
        """The projections of these names side by side."""
        weights = tuple(self.weights[f"{name}.weight"] for name in names)
        biases = [self.weights.get(f"{name}.bias") for name in names]
        wide = [None if bias is None else bias.to(self.dtype) for bias in biases]
        return Projection(weights, joined_bias(wide, [len(weight) for weight in weights]))

    def norm(self, name: str) -> RMSNorm:
        weight = self.weights[f"{name}.weight"].to(self.dtype)
        return RMSNorm(weight, weight.new_tensor(self.constants.eps(name)))

    def qk_norm(self, at: str, heads: Heads) -> RMSNorm | None:
        """The norms of queries and keys as one, with a weight row per head."""
        if self.family.query_norm is None or self.family.key_norm is None:
            return None
        query, key = self.norm(at + self.family.query_norm), self.norm(at + self.family.key_norm)
        if query.eps != key.eps:
            raise ModelError(f"the norms of queries and keys in {at}* have different epsilons, which is not supported")
        rows = (query.weight.expand(heads.num_heads, -1), key.weight.expand(heads.num_kv_heads, -1))
        return RMSNorm(torch.cat(rows), query.eps)


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


def _max_positions(config: Any) -> int:
    """The longest prompt; a dynamic rope stretches what the config says by its factor."""
    rope = config.rope_parameters
    factor = rope.get("factor", 1.0) if rope.get("rope_type") == "dynamic" else 1.0
    return int(config.max_position_embeddings * factor)
