"""Qwen3: every query and key head is normed over its own channels before the rotation; no bias by default."""

from dataclasses import replace

from engine.families.family import window_by_layer_type
from engine.families.llama import LLAMA

QWEN3 = replace(
    LLAMA,
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    query_norm="self_attn.q_norm",
    key_norm="self_attn.k_norm",
    window=window_by_layer_type,
)
