"""Tiny random models of architectures that no family describes, every term perturbed so that each matters."""

from dataclasses import dataclass, field
from typing import Any

import torch

VOCABULARY = 97
TOKENS = (3, 17, 60, 41, 5, 88, 29, 33, 70)
BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OWN_KEYS = {name: value for name, value in BASE.items() if name != "num_key_value_heads"}
OPT = {"vocab_size": VOCABULARY, "hidden_size": 48, "word_embed_proj_dim": 48, "ffn_dim": 80}
GPT = {"vocab_size": VOCABULARY, "n_embd": 48, "n_inner": 80, "n_positions": 64, "bos_token_id": 1, "eos_token_id": 2}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 40}


@dataclass(frozen=True)
class GenericCase:
    """An architecture, where its layers are, and which submodule gives what attention adds, before ``factor``."""

    name: str
    architecture: str
    kind: str
    config: dict[str, Any] = field(default_factory=dict)
    base: dict[str, Any] = field(default_factory=lambda: BASE)
    layers: str = "model.layers"
    added: str = "self_attn"
    factor: float = 1.0


def _case(*args: Any, **where: Any) -> GenericCase:
    name, architecture, kind, *config = args
    return GenericCase(name, architecture, kind, *config, **where)


GENERIC_CASES = (
    _case("phi", "PhiForCausalLM", "parallel, one layer norm"),
    _case("stablelm", "StableLmForCausalLM", "layer norms, partial rope", {"partial_rotary_factor": 0.5}),
    _case(
        "stablelm-parallel",
        "StableLmForCausalLM",
        "parallel, queries and keys normed",
        {"use_parallel_residual": True, "qk_layernorm": True, "partial_rotary_factor": 0.5},
    ),
    _case("cohere", "CohereForCausalLM", "parallel, scaled logits"),
    _case("cohere2", "Cohere2ForCausalLM", "parallel, windows, no positions", {"sliding_window": 4, "head_dim": 12}),
    _case("starcoder2", "Starcoder2ForCausalLM", "layer norms, window", {"sliding_window": 5}),
    _case("olmo", "OlmoForCausalLM", "norms without weights, clipped", {"clip_qkv": 2.0}),
    _case("glm", "GlmForCausalLM", "interleaved rope", {"head_dim": 12}),
    _case("glm4", "Glm4ForCausalLM", "norms on both sides", {"head_dim": 12}, added="post_self_attn_layernorm"),
    _case("nemotron", "NemotronForCausalLM", "squared ReLU"),
    _case(
        "opt",
        "OPTForCausalLM",
        "learned positions",
        {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64},
        base=OPT,
        layers="model.decoder.layers",
    ),
    _case("biogpt", "BioGptForCausalLM", "learned positions", base=OWN_KEYS, layers="biogpt.layers"),
    _case("helium", "HeliumForCausalLM", "interleaved rope", {"head_dim": 12}),
    _case(
        "exaone4",
        "Exaone4ForCausalLM",
        "norms behind, windows",
        {"sliding_window": 4, "head_dim": 12},
        added="post_attention_layernorm",
    ),
    _case("persimmon", "PersimmonForCausalLM", "fused projection", base=OWN_KEYS),
    _case(
        "gpt_bigcode",
        "GPTBigCodeForCausalLM",
        "one key/value head",
        {"n_layer": 2, "n_head": 4},
        base=GPT,
        layers="transformer.h",
        added="attn",
    ),
    _case(
        "deepseek_v3",
        "DeepseekV3ForCausalLM",
        "latent keys, experts",
        {**LATENT, **ROUTED, "num_key_value_heads": 4, "first_k_dense_replace": 1},
    ),
    _case(
        "granitemoe",
        "GraniteMoeForCausalLM",
        "experts, multipliers",
        {"residual_multiplier": 0.3, **EXPERTS},
        factor=0.3,
    ),
    _case(
        "granite_swa",
        "GraniteSWAForCausalLM",
        "sinks, windows",
        {"sliding_window": 4, "residual_multiplier": 0.3},
        factor=0.3,
    ),
    _case("apertus", "ApertusForCausalLM", "xIELU, no gate"),
    _case(
        "gemma4",
        "Gemma4ForCausalLM",
        "heads of two sizes, inputs by layer",
        {
            "head_dim": 12,
            "global_head_dim": 16,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention"],
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": VOCABULARY,
            "num_kv_shared_layers": 0,
        },
        added="post_attention_layernorm",
    ),
    _case(
        "bert",
        "BertLMHeadModel",
        "norm behind the sum",
        {"is_decoder": True},
        base=OWN_KEYS,
        layers="bert.encoder.layer",
        added="attention.output.dense",
    ),
)


def build_generic(case: GenericCase, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """The case's model with seeded random weights: norms around 1, all else around 0."""
    import transformers

    cls = getattr(transformers, case.architecture)
    model = cls(cls.config_class(**{**case.base, **case.config})).eval()
    random = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        is_norm = name.endswith("weight") and parameter.ndim == 1
        parameter.data.copy_(torch.randn(parameter.shape, generator=random) * 0.3 + is_norm)
    if dtype == torch.float64 and hasattr(model.config, "_experts_implementation"):
        model.config._experts_implementation = "eager"  # the other kernels of experts have no float64
    model.to(dtype)
    for name, module in model.named_modules():
        if "rotary_emb" in name:
            module.float()  # rotary tables are made in float32 by definition, and by some releases in nothing else
    return model
