"""Llama 2 and 3: the layer that the other families vary. Biases only where the config asks for them."""

from typing import Any

from engine.model.families.family import Family


def attention_biases(config: Any) -> tuple[str, ...]:
    """All projections of the attention have a bias, or none."""
    return ("qkv", "output") if config.attention_bias else ()


def all_biases(config: Any) -> tuple[str, ...]:
    """Attention and MLP have biases by two switches."""
    return attention_biases(config) + (("gate_up", "down") if config.mlp_bias else ())


LLAMA = Family(model_type="llama", architecture="LlamaForCausalLM", config="LlamaConfig", biased=all_biases)
