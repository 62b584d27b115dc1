"""Tiny architectures of every supported family, several of each: what the zoo is made of."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Config = dict[str, Any]

LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "original_max_position_embeddings": 8,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "original_max_position_embeddings": 10,
    "short_factor": [1.0, 1.3, 1.6, 1.9],
    "long_factor": [2.0, 2.6, 3.2, 3.8],
}
FULL, SLIDING = "full_attention", "sliding_attention"
MIXED = {"layer_types": [SLIDING, FULL, SLIDING], "sliding_window": 4}
BIASED = {"attention_bias": True, "mlp_bias": True}
TWO_ROPES = {FULL: LINEAR, SLIDING: {"rope_type": "default", "rope_theta": 100.0}}
CAPPED = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0}
UNCAPPED = dict.fromkeys(CAPPED)
PARTIAL = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
GRANITE = {
    "attention_multiplier": 0.6,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.4,
    "logits_scaling": 0.3,
}


@dataclass(frozen=True)
class Case:
    """A tiny architecture: its family, how it differs from the base of the zoo, and the length of its prompt."""

    family: str
    variation: str
    architecture: str
    config: Config
    length: int = 9

    @property
    def name(self) -> str:
        return f"{self.family} {self.variation}".strip().lower().replace(" ", "-")


VARIATIONS: dict[tuple[str, str], dict[str, Config]] = {
    ("Qwen3", "Qwen3ForCausalLM"): {
        "": {"head_dim": 20},
        "window": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
        "yarn": {"rope_parameters": YARN, "attention_bias": True, "num_key_value_heads": 1},
    },
    ("Qwen2", "Qwen2ForCausalLM"): {
        "": {"head_dim": None},
        "window": {"head_dim": None, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2},
    },
    ("Llama", "LlamaForCausalLM"): {
        "biases": {**BIASED, "tie_word_embeddings": True},
        "llama3 rope": {"rope_parameters": LLAMA3, "hidden_act": "gelu"},
        "dynamic rope": {"rope_parameters": DYNAMIC, "max_position_embeddings": 6},
    },
    ("Mistral", "MistralForCausalLM"): {"": {"sliding_window": None}, "window": {"sliding_window": 4}},
    ("Ministral", "MinistralForCausalLM"): {"": {**MIXED, "rope_parameters": YARN}},
    ("Seed-OSS", "SeedOssForCausalLM"): {
        "": {},
        "output biases": {"attention_bias": False, "attention_out_bias": True, "mlp_bias": True},
    },
    ("Arcee", "ArceeForCausalLM"): {"": {}, "biases tied": {**BIASED, "tie_word_embeddings": True}},
    ("Gemma", "GemmaForCausalLM"): {
        "": {},
        "biases MQA": {"attention_bias": True, "num_key_value_heads": 1, "hidden_act": "silu"},
        "untied linear rope": {"tie_word_embeddings": False, "rope_parameters": LINEAR},
    },
    ("Gemma 2", "Gemma2ForCausalLM"): {
        "": {**MIXED, **CAPPED, "query_pre_attn_scalar": 5},
        "no caps": {**MIXED, **UNCAPPED, "query_pre_attn_scalar": 30, "attention_bias": True},
        "MHA": {**CAPPED, "num_key_value_heads": 4, "sliding_window": 3, "hidden_activation": "gelu"},
    },
    ("Gemma 3", "Gemma3ForCausalLM"): {
        "": {**MIXED, "rope_parameters": TWO_ROPES, "query_pre_attn_scalar": 4},
        "caps biases": {**MIXED, **CAPPED, "rope_parameters": TWO_ROPES, "attention_bias": True},
        "window in all layers": {"layer_types": [SLIDING] * 3, "sliding_window": 4, "query_pre_attn_scalar": 4},
        "full in all layers": {"layer_types": [FULL] * 3, "num_key_value_heads": 1, "tie_word_embeddings": False},
    },
    ("Phi-3", "Phi3ForCausalLM"): {
        "": {"head_dim": None},
        "partial rotary": {"hidden_size": 64, "head_dim": None, "rope_parameters": PARTIAL, "sliding_window": 4},
        "longrope": {
            "hidden_size": 32,
            "head_dim": None,
            "original_max_position_embeddings": 10,
            "rope_parameters": LONGROPE,
        },
        "longrope short": {
            "hidden_size": 64,
            "head_dim": None,
            "tie_word_embeddings": True,
            "rope_parameters": {**LONGROPE, "partial_rotary_factor": 0.5, "original_max_position_embeddings": 32},
        },
    },
    ("OLMo 2", "Olmo2ForCausalLM"): {
        "": {"head_dim": None},
        "biases MHA": {"head_dim": None, "attention_bias": True, "num_key_value_heads": 4, "rope_parameters": YARN},
        "MQA tied": {"head_dim": None, "num_key_value_heads": 1, "tie_word_embeddings": True},
    },
    ("OLMo 3", "Olmo3ForCausalLM"): {
        "": {**MIXED, "head_dim": None, "rope_parameters": TWO_ROPES},
        "biases": {**MIXED, "head_dim": None, "rope_parameters": {FULL: YARN, SLIDING: LINEAR}, "attention_bias": True},
    },
    ("SmolLM3", "SmolLM3ForCausalLM"): {
        "": {"no_rope_layers": [1, 0, 1]},
        "window without rope": {"no_rope_layers": [1, 0, 0], "use_sliding_window": True, "sliding_window": 4, **BIASED},
        "window by type": {"no_rope_layers": [0, 1, 1], "use_sliding_window": True, **MIXED, "rope_parameters": YARN},
        "untied": {"no_rope_layer_interval": 2, "tie_word_embeddings": False, "hidden_act": "relu"},
    },
    ("Granite", "GraniteForCausalLM"): {
        "": GRANITE,
        "biases tied": {**GRANITE, **BIASED, "tie_word_embeddings": True, "rope_parameters": LINEAR},
    },
    ("GPT-2", "GPT2LMHeadModel"): {
        "": {},
        "scaled by layer": {"scale_attn_by_inverse_layer_idx": True, "n_inner": 56, "activation_function": "relu"},
        "unscaled untied": {
            "scale_attn_weights": False,
            "tie_word_embeddings": False,
            "activation_function": "gelu",
            "n_embd": 20,
            "n_head": 5,
        },
    },
    ("GPT-NeoX", "GPTNeoXForCausalLM"): {
        "": {"hidden_size": 64, "rope_parameters": {**PARTIAL, "partial_rotary_factor": 0.25}},
        "sequential": {"use_parallel_residual": False, "rope_parameters": {**PARTIAL, "partial_rotary_factor": 1.0}},
        "no biases tied": {"attention_bias": False, "tie_word_embeddings": True, "hidden_act": "gelu_new"},
        "linear rope": {"hidden_size": 64, "rope_parameters": {**LINEAR, "partial_rotary_factor": 0.5}},
    },
    ("Qwen3-MoE", "Qwen3MoeForCausalLM"): {
        "": {"num_experts": 6, "num_experts_per_tok": 2},
        "normed": {"num_experts": 8, "num_experts_per_tok": 3, "norm_topk_prob": True, "attention_bias": True},
        "dense layers": {"num_experts": 4, "num_experts_per_tok": 1, "mlp_only_layers": [1]},
        "sparse step": {
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "decoder_sparse_step": 2,
            "tie_word_embeddings": True,
            "use_sliding_window": True,
            "sliding_window": 4,
        },
    },
    ("Mixtral", "MixtralForCausalLM"): {
        "": {"num_local_experts": 4, "num_experts_per_tok": 2},
        "window top-1": {"num_local_experts": 5, "num_experts_per_tok": 1, "sliding_window": 4, "hidden_act": "gelu"},
        "top-3 MHA": {"num_local_experts": 8, "num_experts_per_tok": 3, "num_key_value_heads": 4, "head_dim": None},
    },
    ("gpt-oss", "GptOssForCausalLM"): {
        "": {**MIXED, "num_local_experts": 8, "num_experts_per_tok": 3, "rope_parameters": {**YARN, "truncate": False}},
        "no biases top-1": {
            **MIXED,
            "num_local_experts": 5,
            "num_experts_per_tok": 1,
            "attention_bias": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
            "num_key_value_heads": 1,
        },
        "window of one": {"num_local_experts": 6, "num_experts_per_tok": 3, "sliding_window": 1, "head_dim": 8},
    },
}
"""(family, class) -> variation -> what differs."""

LENGTHS = {"longrope": 12, "longrope short": 7, "yarn": 12, "llama3 rope": 12, "window of one": 7}


def cases() -> Iterator[Case]:
    """Every variation of every family."""
    for (family, architecture), variations in VARIATIONS.items():
        for variation, config in variations.items():
            yield Case(family, variation, architecture, config, LENGTHS.get(variation, 9))
