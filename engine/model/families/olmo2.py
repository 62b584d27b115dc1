"""OLMo 2: norms only behind attention and MLP, and queries and keys normed over all heads together."""

from engine.model.families.family import Family
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
