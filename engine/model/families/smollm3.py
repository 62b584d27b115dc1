"""SmolLM3: Llama, but some layers have no positions at all (NoPE), and with them windows may come."""

from engine.model.families.family import Family, window_by_layer_type
from engine.model.families.llama import all_biases

SMOLLM3 = Family(
    model_type="smollm3",
    architecture="SmolLM3ForCausalLM",
    config="SmolLM3Config",
    biased=all_biases,
    window=window_by_layer_type,
    rope_of=lambda config, layer: "default" if config.no_rope_layers[layer] else None,
    told={"self_attn.use_rope": lambda config, layer: config.no_rope_layers[layer]},
)
