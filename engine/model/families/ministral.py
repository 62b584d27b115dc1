"""Ministral: Mistral with its window on some layers only."""

from dataclasses import replace

from engine.model.families.family import window_by_layer_type
from engine.model.families.mistral import MISTRAL

MINISTRAL = replace(
    MISTRAL,
    model_type="ministral",
    architecture="MinistralForCausalLM",
    config="MinistralConfig",
    window=window_by_layer_type,
)
