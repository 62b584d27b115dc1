"""Mistral: Llama with one sliding window for all layers (later releases have none) and without biases."""

from engine.model.families.family import Family, window_everywhere

MISTRAL = Family(
    model_type="mistral", architecture="MistralForCausalLM", config="MistralConfig", window=window_everywhere
)
