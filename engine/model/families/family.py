"""What a model family must say of itself: where transformers keeps each weight, and what differs in its layers."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from engine.errors import ModelError

NormKind = Literal["rms", "rms plus one", "layer"]
"""RMS norms, RMS norms whose weight is 1 more than what is stored, or layer norms with a bias."""


def no_window(config: Any, layer: int) -> None:
    """Every layer sees all earlier positions."""


def window_everywhere(config: Any, layer: int) -> int | None:
    """One sliding window for all layers, or none."""
    return config.sliding_window


def window_by_layer_type(config: Any, layer: int) -> int | None:
    """A sliding window where ``layer_types`` says so. Raises ``ModelError`` for any other kind of attention, and for a
    window of no size.
    """
    kind = config.layer_types[layer]
    if kind not in ("full_attention", "sliding_attention"):
        raise ModelError(f"layer {layer} has {kind!r}, which is not supported; full and sliding attention are")
    if kind == "full_attention":
        return None
    if config.sliding_window is None:
        raise ModelError(f"layer {layer} has sliding attention, but sliding_window is null in the model's config")
    return config.sliding_window


def no_bias(config: Any) -> tuple[str, ...]:
    """No projection has a bias."""
    return ()


def head_dim(config: Any) -> int:
    """Channels of a head; where the config does not say, the residual channels are shared out."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def num_kv_heads(config: Any) -> int:
    """Key/value heads; where the config does not say, every query head has its own."""
    return getattr(config, "num_key_value_heads", None) or config.num_attention_heads


def one_rope(config: Any) -> dict[str, dict[str, Any]]:
    """All layers turn queries and keys alike."""
    return {"default": config.rope_parameters}


def ropes_by_layer_type(config: Any) -> dict[str, dict[str, Any]]:
    """One rope for full attention, and one for sliding windows."""
    return {kind: config.rope_parameters[kind] for kind in sorted(set(config.layer_types))}


def rope_by_layer_type(config: Any, layer: int) -> str:
    """The rope of that kind of layer."""
    return config.layer_types[layer]


def scale_by_size(config: Any, layer: int) -> float:
    """1 / √d, as in Vaswani et al. 2017, arXiv 1706.03762."""
    return head_dim(config) ** -0.5


def nothing(config: Any) -> None:
    """What a config does not ask for."""


def one(config: Any) -> float:
    """A factor that changes nothing."""
    return 1.0


@dataclass(frozen=True)
class ExpertNames:
    """Where a mixture of experts keeps its weights, and how it chooses. ``{}`` is the number of the expert.

    In memory transformers stacks them, ``gate_up`` and ``down``; a checkpoint may hold the parts of each.
    """

    router: str
    gate_up: str
    down: str
    parts: tuple[str, str, str] | None = None
    """Gate, up and down of one expert in a checkpoint; None where they are stacked there too."""
    router_biased: bool = False
    biased: bool = False
    transposed: bool = False
    is_sparse: Callable[[Any, int], bool] = lambda config, layer: True
    """Whether a layer has experts, and no single MLP."""
    intermediate: Callable[[Any], int] = lambda config: config.intermediate_size
    renormalised: Callable[[Any], bool] = lambda config: True
    """Whether the weights of the chosen experts are made to sum to 1."""


@dataclass(frozen=True)
class Family:
    """Module names are relative to the model; those of a layer are relative to the layer."""

    model_type: str
    architecture: str
    config: str

    prefix: str = "model."
    """What the names in a checkpoint of the base model, saved without its vocabulary head, leave out."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Parts of names in checkpoints -> what transformers calls them now."""
    embedding: str = "model.embed_tokens"
    positions: str | None = None
    rotary: str | None = "model.rotary_emb"
    layers: str = "model.layers"
    final_norm: str = "model.norm"
    unembedding: str = "lm_head"

    norm: NormKind = "rms"
    eps: str = "rms_norm_eps"
    """The field of the config; the module is asked where there is one."""
    attn_norm: str | None = "input_layernorm"
    attn_post_norm: str | None = None
    mlp_norm: str | None = "post_attention_layernorm"
    mlp_post_norm: str | None = None
    parallel: Callable[[Any], bool] = lambda config: False
    multiplier: Callable[[Any], float] = one

    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    """The three projections, or the one that does for all."""
    by_head: bool = False
    """Whether the one gives query, key and value head by head."""
    output: str = "self_attn.o_proj"
    query_norm: str | None = None
    key_norm: str | None = None
    whole_qk_norm: bool = False
    """Whether all heads are normed together, and not each on its own."""
    sinks: str | None = None
    scale: str = "self_attn.scaling"
    scale_of: Callable[[Any, int], float] = scale_by_size
    soft_cap: Callable[[Any], float | None] = nothing
    head_dim: str = "self_attn.head_dim"
    biased: Callable[[Any], Collection[str]] = no_bias
    """The fields of this class whose projections have a bias, by config."""
    window: Callable[[Any, int], int | None] = no_window

    ropes: Callable[[Any], dict[str, dict[str, Any]]] = one_rope
    """The parameters of each rope, by name."""
    rope_of: Callable[[Any, int], str | None] = lambda config, layer: "default"
    """The name of a layer's rope; None for none."""
    partial_rope: bool = False
    """Whether a rope may turn a part of each head."""
    half_tables: bool = False
    """Whether the module's tables have one column for each pair of channels."""

    gate_up: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    """Both projections, the one that does for both, or the only one of an MLP that is not ``gated``."""
    down: str = "mlp.down_proj"
    gated: bool = True
    activation: str | None = "mlp.act_fn"
    act: str = "hidden_act"
    """The field of the config."""
    intermediate: Callable[[Any], int] = lambda config: config.intermediate_size
    experts: ExpertNames | None = None
    clamped: Callable[[Any], tuple[float, float] | None] = nothing
    """Slope and limit of gates as gpt-oss has them."""
    transposed: bool = False
    """Whether projections are stored input first, as ``Conv1D`` does."""

    embedding_scale: Callable[[Any], float] = one
    embedding_buffer: str | None = None
    """The buffer of the embedding that holds the scale, rounded to its precision; None where it is a plain number."""
    logits_scale: Callable[[Any], float] = one
    logits_cap: Callable[[Any], float | None] = nothing
    told: Mapping[str, Callable[[Any, int], Any]] = field(default_factory=dict)
    """Settings that a layer's modules hold themselves (of its MLP: where it has experts), and what the config says."""
    refused: Callable[[Any], str | None] = nothing
    """What a config asks for that is not supported, if it does."""

    @property
    def modelling(self) -> str:
        """The module of transformers that holds the family's classes."""
        return self.model_type.removesuffix("_text")

    def linears(self) -> tuple[str, ...]:
        """The projections of a layer with a single MLP."""
        return (*self.qkv, self.output, *self.gate_up, self.down)

    def is_sparse(self, config: Any, layer: int) -> bool:
        """Whether a layer has experts."""
        return self.experts is not None and self.experts.is_sparse(config, layer)
