"""gpt-oss: experts with biases and clamped gates, windows in turns, and a sink in every head's softmax."""

from typing import Any

from engine.model.families.family import ExpertNames, Family, window_by_layer_type
from engine.model.families.llama import attention_biases


def _clamped(config: Any) -> tuple[float, float]:
    """Slope and limit of the gates; the same for all releases so far, and not in every release's config."""
    return getattr(config, "swiglu_alpha", 1.702), getattr(config, "swiglu_limit", 7.0)


GPT_OSS = Family(
    model_type="gpt_oss",
    architecture="GptOssForCausalLM",
    config="GptOssConfig",
    sinks="self_attn.sinks",
    biased=attention_biases,
    window=window_by_layer_type,
    half_tables=True,
    activation=None,
    clamped=_clamped,
    told={
        "mlp.router.top_k": lambda config, layer: config.num_experts_per_tok,
        "mlp.experts.alpha": lambda config, layer: _clamped(config)[0],
        "mlp.experts.limit": lambda config, layer: _clamped(config)[1],
    },
    experts=ExpertNames(
        router="mlp.router",
        router_biased=True,
        gate_up="mlp.experts.gate_up_proj",
        down="mlp.experts.down_proj",
        biased=True,
        transposed=True,
    ),
)
