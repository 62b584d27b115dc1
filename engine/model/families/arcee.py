"""Arcee: Llama whose MLP has no gate."""

from dataclasses import replace

from engine.model.families.llama import LLAMA

ARCEE = replace(
    LLAMA,
    model_type="arcee",
    architecture="ArceeForCausalLM",
    config="ArceeConfig",
    gate_up=("mlp.up_proj",),
    gated=False,
)
