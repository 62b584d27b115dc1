"""Gemma 1, 2 and 3: norms whose stored weight is 1 too small, and an embedding that is scaled by √e.

From Gemma 2 on every part is normed twice, before it and behind it, scores and logits are soft-capped, and windows come
in turns. Gemma 3 norms queries and keys instead of capping scores, and turns them by another rope inside windows.
"""

from dataclasses import replace
from typing import Any

from engine.model.families.family import Family, rope_by_layer_type, ropes_by_layer_type, window_by_layer_type
from engine.model.families.llama import attention_biases


def _refused(config: Any) -> str | None:
    return "attention in both directions" if getattr(config, "use_bidirectional_attention", None) else None


GEMMA = Family(
    model_type="gemma",
    architecture="GemmaForCausalLM",
    config="GemmaConfig",
    norm="rms plus one",
    biased=attention_biases,
    embedding_scale=lambda config: config.hidden_size**0.5,
    embedding_buffer="embed_scale",
    refused=_refused,
)

GEMMA2 = replace(
    GEMMA,
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    config="Gemma2Config",
    attn_post_norm="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    mlp_post_norm="post_feedforward_layernorm",
    act="hidden_activation",
    scale_of=lambda config, layer: config.query_pre_attn_scalar**-0.5,
    soft_cap=lambda config: config.attn_logit_softcapping,
    logits_cap=lambda config: config.final_logit_softcapping,
    window=window_by_layer_type,
)

GEMMA3 = replace(
    GEMMA2,
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    config="Gemma3TextConfig",
    query_norm="self_attn.q_norm",
    key_norm="self_attn.k_norm",
    soft_cap=lambda config: None,  # The config has the field; the model does not use it.
    ropes=ropes_by_layer_type,
    rope_of=rope_by_layer_type,
)
