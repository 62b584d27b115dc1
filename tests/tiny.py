"""Tiny random models of every family, with every term perturbed so that each matters."""

from dataclasses import dataclass, field
from typing import Any

import torch
import transformers

VOCAB = 97
BASE = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0 + 0.1 * i for i in range(8)],
    "long_factor": [2.0 + 0.5 * i for i in range(8)],
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}


@dataclass(frozen=True)
class Case:
    """A tiny architecture: what it is, and how it differs from ``BASE``."""

    name: str
    architecture: str
    config: dict[str, Any] = field(default_factory=dict)
    length: int = 9


CASES = (
    Case("qwen3", "Qwen3ForCausalLM"),
    Case("qwen3-mha", "Qwen3ForCausalLM", {"num_key_value_heads": 4}),
    Case("qwen3-mqa", "Qwen3ForCausalLM", {"num_key_value_heads": 1}),
    Case("qwen3-narrow", "Qwen3ForCausalLM", {"hidden_size": 40, "head_dim": 6, "intermediate_size": 56}),
    Case("qwen3-bias", "Qwen3ForCausalLM", {"attention_bias": True, "tie_word_embeddings": False}),
    Case("qwen3-one-layer", "Qwen3ForCausalLM", {"num_hidden_layers": 1}, length=2),
    Case("qwen3-yarn", "Qwen3ForCausalLM", {"rope_parameters": YARN}, length=33),
    Case(
        "qwen3-window",
        "Qwen3ForCausalLM",
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
        length=11,
    ),
    Case("qwen3-long", "Qwen3ForCausalLM", {"max_position_embeddings": 160, "num_hidden_layers": 2}, length=131),
    Case("qwen2", "Qwen2ForCausalLM", {"head_dim": 12}),
    Case(
        "qwen2-window",
        "Qwen2ForCausalLM",
        {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 2},
        length=13,
    ),
    Case("llama", "LlamaForCausalLM"),
    Case("llama-bias", "LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}),
    Case("llama-3", "LlamaForCausalLM", {"rope_parameters": LLAMA3}, length=31),
    Case("llama-linear", "LlamaForCausalLM", {"rope_parameters": LINEAR}, length=7),
    Case("llama-dynamic", "LlamaForCausalLM", {"rope_parameters": DYNAMIC, "max_position_embeddings": 24}, length=41),
    Case("llama-longrope", "LlamaForCausalLM", {"rope_parameters": LONGROPE, "max_position_embeddings": 64}, length=40),
    Case("llama-longrope-short", "LlamaForCausalLM", {"rope_parameters": LONGROPE}, length=12),
    Case("llama-gelu", "LlamaForCausalLM", {"hidden_act": "gelu"}),
    Case("mistral", "MistralForCausalLM", {"sliding_window": None}),
    Case("mistral-window", "MistralForCausalLM", {"sliding_window": 4}, length=17),
    Case("mistral-long", "MistralForCausalLM", {"sliding_window": 20, "max_position_embeddings": 80}, length=75),
    Case("mistral-window-1", "MistralForCausalLM", {"sliding_window": 1}, length=5),
)


def build(case: Case, *, dtype: torch.dtype = torch.float32, seed: int = 0, sharpness: float = 1.0) -> Any:
    """The case's model with seeded random weights; ``sharpness`` scales the scores, so that attention peaks."""
    cls = getattr(transformers, case.architecture)
    model = cls(cls.config_class(**(BASE | case.config))).eval()
    random = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        center = 1.0 if "norm" in name else 0.0
        sharp = sharpness if "q_norm" in name else 1.0
        parameter.data.copy_((torch.randn(parameter.shape, generator=random) * 0.3 + center) * sharp)
    return model.to(dtype)


def token_ids(case: Case, *, seed: int = 0) -> list[int]:
    """A seeded random prompt of the case's length."""
    random = torch.Generator().manual_seed(seed + 1)
    return torch.randint(0, VOCAB, (case.length,), generator=random).tolist()
