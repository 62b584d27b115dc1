"""Granite: Llama with factors on the embedding, the scores, what each part adds to the stream, and the logits."""

from engine.model.families.family import Family
from engine.model.families.llama import all_biases

GRANITE = Family(
    model_type="granite",
    architecture="GraniteForCausalLM",
    config="GraniteConfig",
    biased=all_biases,
    scale_of=lambda config, layer: config.attention_multiplier,
    multiplier=lambda config: config.residual_multiplier,
    told={"residual_multiplier": lambda config, layer: config.residual_multiplier},
    embedding_scale=lambda config: config.embedding_multiplier,
    logits_scale=lambda config: 1 / config.logits_scaling,
)
