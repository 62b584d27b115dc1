"""Qwen3: every query and key head is normed over its own channels before the rotation; no bias by default."""

from engine.model.families.family import Family, window_by_layer_type
from engine.model.families.llama import attention_biases

QWEN3 = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    config="Qwen3Config",
    query_norm="self_attn.q_norm",
    key_norm="self_attn.k_norm",
    biased=attention_biases,
    window=window_by_layer_type,
)
