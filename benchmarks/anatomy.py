"""Where a transformers model of each family keeps the parts that the naive way reads; nothing of the engine is used.

The names are relative: ``layers`` and ``final_norm`` to the base model, all others to a layer. What a layer adds to the
residual stream leaves two of its children, ``attn_added`` and ``mlp_added``, and is multiplied by ``multiplier``.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Anatomy:
    """The layout of Llama, which most families share."""

    layers: str = "layers"
    final_norm: str = "norm"
    attention: str = "self_attn"
    output: str = "self_attn.o_proj"
    """The output projection, whose input is the heads side by side."""
    mlp: str = "mlp"
    attn_added: str = "self_attn"
    mlp_added: str = "mlp"
    multiplier: str | None = None
    """The field of the config that both additions are multiplied by."""


_POST_NORMED = Anatomy(attn_added="post_attention_layernorm", mlp_added="post_feedforward_layernorm")
ANATOMIES: dict[str, Anatomy] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "phi3", "smollm3", "gemma"), Anatomy()),
    **dict.fromkeys(("ministral", "seed_oss", "arcee", "mixtral", "qwen3_moe", "gpt_oss"), Anatomy()),
    **dict.fromkeys(("gemma2", "gemma3_text", "olmo2", "olmo3"), _POST_NORMED),
    "granite": Anatomy(multiplier="residual_multiplier"),
    "gpt2": Anatomy(
        layers="h", final_norm="ln_f", attention="attn", output="attn.c_proj", attn_added="attn", mlp_added="mlp"
    ),
    "gpt_neox": Anatomy(
        final_norm="final_layer_norm", attention="attention", output="attention.dense", attn_added="attention"
    ),
}


def anatomy_of(model: Any) -> Anatomy:
    """The anatomy of the model's family. Raises ``ValueError`` for a family that has none here."""
    family = model.config.model_type
    if family not in ANATOMIES:
        raise ValueError(f"the naive reference reads {', '.join(ANATOMIES)}; this model is of type {family!r}")
    return ANATOMIES[family]


def layers_of(model: Any) -> list[nn.Module]:
    """The decoder layers, first to last."""
    return list(model.base_model.get_submodule(anatomy_of(model).layers).children())


def multiplier_of(model: Any) -> float:
    """What attention and MLP are multiplied by before they are added to the stream."""
    name = anatomy_of(model).multiplier
    return 1.0 if name is None else getattr(model.config, name)
