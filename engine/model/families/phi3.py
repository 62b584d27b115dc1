"""Phi-3 and Phi-4: one projection for query, key and value, one for gate and up, and a rope on a part of each head."""

from engine.model.families.family import Family, window_everywhere

PHI3 = Family(
    model_type="phi3",
    architecture="Phi3ForCausalLM",
    config="Phi3Config",
    qkv=("self_attn.qkv_proj",),
    gate_up=("mlp.gate_up_proj",),
    activation="mlp.activation_fn",
    partial_rope=True,
    window=window_everywhere,
)
