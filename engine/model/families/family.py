"""What a model family must say of itself: where transformers keeps each weight, and what differs in its layers."""

from collections.abc import Callable, Collection, Iterator
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


def no_bias(config: Any) -> tuple[str, ...]:
    """No projection has a bias."""
    return ()


def head_dim(config: Any) -> int:
    """Channels of a head; where the config does not say, the residual channels are shared out."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


@dataclass(frozen=True)
class Family:
    """Module names are relative to the model; those of a layer are relative to the layer."""

    model_type: str
    architecture: str
    config: str

    prefix: str = "model."
    """What the names in a checkpoint of the base model, saved without its vocabulary head, leave out."""
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
    biased: Callable[[Any], Collection[str]] = no_bias
    """The fields of this class whose projections have a bias, by config."""
    window: Callable[[Any, int], int | None] = no_window

    mlp_norm: str = "post_attention_layernorm"
    gate: str = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    down: str = "mlp.down_proj"
    activation: str = "mlp.act_fn"

    norm_eps: str = "variance_epsilon"

    def norms(self) -> tuple[str, ...]:
        """The norms of a layer."""
        return tuple(name for name in (self.attn_norm, self.mlp_norm, self.query_norm, self.key_norm) if name)

    def linears(self) -> tuple[str, ...]:
        """The projections of a layer."""
        return (self.query, self.key, self.value, self.output, self.gate, self.up, self.down)

    def shapes(self, config: Any) -> dict[str, tuple[int, ...]]:
        """Every weight that the config calls for, by its full name, with its shape as transformers builds it."""
        table = (config.vocab_size, config.hidden_size)
        shapes: dict[str, tuple[int, ...]] = {
            f"{self.embedding}.weight": table,
            f"{self.final_norm}.weight": (config.hidden_size,),
            f"{self.unembedding}.weight": table,
        }
        layer = dict(self._layer_shapes(config))
        for index in range(config.num_hidden_layers):
            shapes |= {f"{self.layers}.{index}.{name}": shape for name, shape in layer.items()}
        return shapes

    def _layer_shapes(self, config: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
        e, f, d = config.hidden_size, config.intermediate_size, head_dim(config)
        q, kv = config.num_attention_heads * d, config.num_key_value_heads * d
        sizes = {"query": (q, e), "key": (kv, e), "value": (kv, e), "output": (e, q)}
        sizes |= {"gate": (f, e), "up": (f, e), "down": (e, f)}
        biased = self.biased(config)
        for part, shape in sizes.items():
            yield f"{getattr(self, part)}.weight", shape
            if part in biased:
                yield f"{getattr(self, part)}.bias", shape[:1]
        for name in self.norms():
            yield f"{name}.weight", (e,) if name in (self.attn_norm, self.mlp_norm) else (d,)
