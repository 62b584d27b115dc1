"""Qwen3-MoE: Qwen3 whose MLPs are mixtures of experts, but for the layers that the config keeps dense."""

from dataclasses import replace
from typing import Any

from engine.model.families.family import ExpertNames, window_everywhere
from engine.model.families.qwen3 import QWEN3


def _is_sparse(config: Any, layer: int) -> bool:
    dense = layer in config.mlp_only_layers or not config.num_experts
    return not dense and (layer + 1) % config.decoder_sparse_step == 0


QWEN3_MOE = replace(
    QWEN3,
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    config="Qwen3MoeConfig",
    window=window_everywhere,
    told={
        "mlp.gate.top_k": lambda config, layer: config.num_experts_per_tok,
        "mlp.gate.norm_topk_prob": lambda config, layer: config.norm_topk_prob,
    },
    experts=ExpertNames(
        router="mlp.gate",
        gate_up="mlp.experts.gate_up_proj",
        down="mlp.experts.down_proj",
        parts=("mlp.experts.{}.gate_proj", "mlp.experts.{}.up_proj", "mlp.experts.{}.down_proj"),
        is_sparse=_is_sparse,
        intermediate=lambda config: config.moe_intermediate_size,
        renormalised=lambda config: config.norm_topk_prob,
    ),
)
