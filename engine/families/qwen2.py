"""Qwen2 and Qwen2.5: Llama with biases on query, key and value, and a window on some layers when switched on."""

from dataclasses import replace

from engine.families.family import window_by_layer_type
from engine.families.llama import LLAMA

QWEN2 = replace(LLAMA, model_type="qwen2", architecture="Qwen2ForCausalLM", window=window_by_layer_type)
