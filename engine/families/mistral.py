"""Mistral: Llama with one sliding window for all layers (later releases have none)."""

from dataclasses import replace

from engine.families.family import window_everywhere
from engine.families.llama import LLAMA

MISTRAL = replace(LLAMA, model_type="mistral", architecture="MistralForCausalLM", window=window_everywhere)
