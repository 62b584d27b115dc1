"""Mixtral: Mistral whose MLPs are mixtures of experts. Checkpoints call their parts w1, w2 and w3."""

from dataclasses import replace

from engine.model.families.family import ExpertNames
from engine.model.families.mistral import MISTRAL

MIXTRAL = replace(
    MISTRAL,
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    config="MixtralConfig",
    renamed={"block_sparse_moe.": "mlp.", ".w1.": ".gate_proj.", ".w2.": ".down_proj.", ".w3.": ".up_proj."},
    told={"mlp.gate.top_k": lambda config, layer: config.num_experts_per_tok},
    experts=ExpertNames(
        router="mlp.gate",
        gate_up="mlp.experts.gate_up_proj",
        down="mlp.experts.down_proj",
        parts=("mlp.experts.{}.gate_proj", "mlp.experts.{}.up_proj", "mlp.experts.{}.down_proj"),
    ),
)
