"""What a model family must say of itself: where transformers keeps each weight, and what differs in its layers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from engine.errors import ModelError


def no_window(config: Any, layer: int) -> None:
    """Every layer sees all earlier positions."""


def window_everywhere(config: Any, layer: int) -> int | None:
    """One sliding window for all layers, or none."""
    return config.sliding_window


def window_by_layer_type(config: Any, layer: int) -> int | None:
    """A sliding window where ``layer_types`` says so. Raises ``ModelError`` for any other kind of attention."""
    kind = config.layer_types[layer]
    if kind not in ("full_attention", "sliding_attention"):
        raise ModelError(f"layer {layer} has {kind!r}, which is not supported; full and sliding attention are")
    return config.sliding_window if kind == "sliding_attention" else None


@dataclass(frozen=True)
class Family:
    """Module names are relative to the model; those of a layer are relative to the layer."""

    model_type: str
    architecture: str

    embedding: str = "model.embed_tokens"
    rotary: str = "model.rotary_emb"
    layers: str = "model.layers"
    final_norm: str = "model.norm"
    unembedding: str = "lm_head"

    attn_norm: str = "input_layernorm"
    query: str = "self_attn.q_proj"
    key: str = "self_attn.k_proj"
    value: str = "self_attn.v_proj"
    query_norm: str | None = None
    key_norm: str | None = None
    output: str = "self_attn.o_proj"
    scale: str = "self_attn.scaling"
    head_dim: str = "self_attn.head_dim"
    window: Callable[[Any, int], int | None] = no_window

    mlp_norm: str = "post_attention_layernorm"
    gate: str = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    down: str = "mlp.down_proj"

    norm_eps: str = "variance_epsilon"
