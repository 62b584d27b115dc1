"""GPT-NeoX and Pythia: layer norms, attention and MLP side by side, one projection that gives query, key and value head
by head, and a rope on a part of each head.
"""

from engine.model.families.family import Family

GPT_NEOX = Family(
    model_type="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    config="GPTNeoXConfig",
    prefix="gpt_neox.",
    renamed={"embed_out.": "lm_head."},
    embedding="gpt_neox.embed_in",
    rotary="gpt_neox.rotary_emb",
    layers="gpt_neox.layers",
    final_norm="gpt_neox.final_layer_norm",
    norm="layer",
    eps="layer_norm_eps",
    parallel=lambda config: config.use_parallel_residual,
    told={"use_parallel_residual": lambda config, layer: config.use_parallel_residual},
    qkv=("attention.query_key_value",),
    by_head=True,
    output="attention.dense",
    scale="attention.scaling",
    head_dim="attention.head_size",
    biased=lambda config: ("gate_up", "down", *(("qkv", "output") if config.attention_bias else ())),
    partial_rope=True,
    gate_up=("mlp.dense_h_to_4h",),
    down="mlp.dense_4h_to_h",
    gated=False,
    activation="mlp.act",
)
