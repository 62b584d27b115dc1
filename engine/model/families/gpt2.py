"""GPT-2: layer norms, learned positions, an MLP without a gate, and weights stored input first."""

from typing import Any

from engine.model.families.family import Family


def _scale(config: Any, layer: int) -> float:
    size = config.hidden_size // config.num_attention_heads
    scale = size**-0.5 if config.scale_attn_weights else 1.0
    return scale / (layer + 1) if config.scale_attn_by_inverse_layer_idx else scale


GPT2 = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    config="GPT2Config",
    prefix="transformer.",
    embedding="transformer.wte",
    positions="transformer.wpe",
    rotary=None,
    layers="transformer.h",
    final_norm="transformer.ln_f",
    norm="layer",
    eps="layer_norm_epsilon",
    attn_norm="ln_1",
    mlp_norm="ln_2",
    qkv=("attn.c_attn",),
    output="attn.c_proj",
    scale="attn.scaling",
    scale_of=_scale,
    head_dim="attn.head_dim",
    biased=lambda config: ("qkv", "output", "gate_up", "down"),
    ropes=lambda config: {},
    rope_of=lambda config, layer: None,
    gate_up=("mlp.c_fc",),
    down="mlp.c_proj",
    gated=False,
    activation="mlp.act",
    act="activation_function",
    intermediate=lambda config: config.n_inner or 4 * config.hidden_size,
    transposed=True,
    refused=lambda config: "cross-attention" if config.add_cross_attention else None,
)
