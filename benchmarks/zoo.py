"""Tiny random models of every supported family, with every term perturbed so that each matters.

    for case in CASES:
        model, prompt = build(case), token_ids(case)

Norm weights are off one (off zero where the family adds one), biases and sinks are random, and the matrices are large
enough that attention is far from uniform and that soft caps and clamps bend what goes through them.
"""

from typing import Any

import torch
import transformers
from jaxtyping import Float
from torch import Tensor

from benchmarks.species import Case, cases

CASES = tuple(cases())
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
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
FORMS = {
    "GPT2LMHeadModel": {
        "vocab_size": VOCAB,
        "n_embd": 48,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": 64,
        "bos_token_id": 0,
        "eos_token_id": 0,
    },
    "GPTNeoXForCausalLM": {key: BASE[key] for key in BASE if key not in ("num_key_value_heads", "head_dim")},
    "Qwen3MoeForCausalLM": {**BASE, "moe_intermediate_size": 24},
}
"""Bases of classes that lack some fields of ``BASE``, or need more."""
ADDS_ONE = ("gemma", "gemma2", "gemma3_text")
"""Families whose norms multiply by one plus the weight."""


def build(case: Case, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """The case's model with seeded random weights, in evaluation mode, under eager attention.

    A ``head_dim`` that is None is left to the class.
    """
    cls = getattr(transformers, case.architecture)
    fields = FORMS.get(case.architecture, BASE) | case.config
    if case.config.get("head_dim", 0) is None:
        del fields["head_dim"]
    model = cls(cls.config_class(**fields, attn_implementation="eager")).eval()
    random = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        center, width = _spread(name, model.config.model_type)
        parameter.data.copy_(_drawn(parameter, random) * width + center)
    return model.to(dtype)


def token_ids(case: Case, *, seed: int = 0) -> list[int]:
    """A seeded random prompt of the case's length."""
    random = torch.Generator().manual_seed(seed + 1)
    return torch.randint(0, VOCAB, (case.length,), generator=random).tolist()


def _drawn(like: Tensor, random: torch.Generator) -> Float[Tensor, "..."]:
    return torch.randn(like.shape, generator=random)


def _spread(name: str, family: str) -> tuple[float, float]:
    """Mean and standard deviation of the weights of that name."""
    if ("norm" in name or "ln_" in name) and name.endswith("weight"):
        return (0.0 if family in ADDS_ONE else 1.0), 0.3
    if name.endswith("sinks"):
        return 0.0, 1.5
    if name.endswith("experts.gate_up_proj"):
        return 0.0, 0.6  # gates of gpt-oss beyond the limit of 7 at which they are clamped
    if any(part in name for part in ("q_proj", "k_proj", "qkv", "c_attn", "query_key_value")):
        return 0.0, 0.2  # scores of a few units: attention that is neither uniform nor all on one token
    return 0.0, 0.3
