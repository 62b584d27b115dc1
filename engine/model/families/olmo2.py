"""OLMo 2 and 3: norms only behind attention and MLP, and queries and keys normed over all heads together.

OLMo 3 has windows on some layers, and ropes of their own there.
"""

from dataclasses import replace

from engine.model.families.family import Family, rope_by_layer_type, ropes_by_layer_type, window_by_layer_type
from engine.model.families.llama import attention_biases

OLMO2 = Family(
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    config="Olmo2Config",
    attn_norm=None,
    attn_post_norm="post_attention_layernorm",
    mlp_norm=None,
    mlp_post_norm="post_feedforward_layernorm",
    query_norm="self_attn.q_norm",
    key_norm="self_attn.k_norm",
    whole_qk_norm=True,
    biased=attention_biases,
)

OLMO3 = replace(
    OLMO2,
    model_type="olmo3",
    architecture="Olmo3ForCausalLM",
    config="Olmo3Config",
    window=window_by_layer_type,
    ropes=ropes_by_layer_type,
    rope_of=rope_by_layer_type,
)
