"""Qwen2 and Qwen2.5: Llama with biases on query, key and value, and a window on some layers when switched on."""

from engine.model.families.family import Family, window_by_layer_type

QWEN2 = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    config="Qwen2Config",
    biased=lambda config: ("qkv",),
    window=window_by_layer_type,
)
