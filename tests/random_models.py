"""Random architectures of every fused family, for hypothesis: what differs from the base of the zoo, and a prompt.

What a family lets vary is written down once, in ``VARIED``; nothing that transformers itself refuses is drawn.
"""

from hypothesis import strategies as st

from benchmarks.species import FULL, SLIDING, Case
from benchmarks.zoo import VOCAB

MOST_POSITIONS = 128
ACTS = ("silu", "gelu", "gelu_pytorch_tanh", "gelu_new", "quick_gelu", "relu", "relu2", "sigmoid", "tanh", "mish")
WINDOWS = st.sampled_from((1, 2, 3, 5, 11, 70, 1000))
SCALARS = st.sampled_from((0.05, 0.3, 1.0, 2.5, 12.0))
CAPS = st.sampled_from((None, 0.3, 2.0, 30.0))
LENGTHS = st.sampled_from((9, 5, 14, *range(2, 21), 66, 70, 81, 90))
"""The first ones are drawn most; above 64 tokens single knockouts share their sums."""
FIXED = ("default", "linear", "llama3", "yarn")
EVERY = (*FIXED, "dynamic", "longrope")
ROPES = {
    **dict.fromkeys(("Phi-3",), ("default", "longrope")),
    **dict.fromkeys(("OLMo 3", "Gemma 3", "GPT-NeoX"), ("default", "linear", "yarn")),
}
"""The types of a family, where it does not take every one."""
MULTIPLES = ("Llama", "Arcee", "Gemma 2", "Gemma 3")
"""Families that want the residual channels to be a multiple of the heads, whatever the size of a head."""
SHARED_OUT = ("Llama", "Mistral", "Qwen2", "OLMo 2", "OLMo 3")
"""Families in which the size of a head may be left out."""
EPS = {"GPT-2": "layer_norm_epsilon", "GPT-NeoX": "layer_norm_eps"}


@st.composite
def architectures(draw, family, architecture):
    """A case of the zoo; its name tells what was drawn."""
    length = draw(LENGTHS)
    config = draw(sizes(family)) | {
        "num_hidden_layers": draw(st.sampled_from((3, 1, 2, 4, 5) if length < 66 else (2, 1)))
    }
    config[EPS.get(family, "rms_norm_eps")] = draw(st.sampled_from((1e-6, 1e-12, 1e-5, 1e-2, 1.0)))
    config |= {"vocab_size": draw(st.sampled_from((VOCAB, 31, 2))), "max_position_embeddings": MOST_POSITIONS}
    config["tie_word_embeddings"] = draw(st.booleans())
    config[act_of(family)] = draw(st.sampled_from(ACTS))
    config |= {} if family in ("GPT-2", "OLMo 3", "Gemma 3") else draw(ropes(family, config, length))
    for field, values in VARIED.get(family, {}).items():
        config[field] = draw(values)
    config |= draw(LAYERWISE[family](config)) if family in LAYERWISE else {}
    return Case(family, "random", architecture, config if family != "GPT-2" else as_gpt2(config), length)


@st.composite
def sizes(draw, family):
    """Heads, and widths that need not be multiples of them."""
    heads = draw(st.sampled_from((4, 6, 1, 2, 3, 5)))
    kv = draw(st.sampled_from(sorted((n for n in range(1, heads + 1) if heads % n == 0), key=lambda n: abs(n - 2))))
    d = 2 * draw(st.sampled_from((5, *range(1, 10))))
    found = {"num_attention_heads": heads, "intermediate_size": draw(st.sampled_from((40, *range(1, 60))))}
    if family in ("GPT-2", "GPT-NeoX"):
        return found | {
            "hidden_size": heads * (d if family == "GPT-NeoX" else draw(st.sampled_from((7, *range(1, 18)))))
        }
    found |= {"num_key_value_heads": kv}
    if family == "Phi-3" or (family in SHARED_OUT and draw(st.booleans())):
        return found | {"head_dim": None, "hidden_size": heads * d}
    hidden = [n * heads for n in (7, *range(1, 10))] if family in MULTIPLES else (30, *range(2, 50))
    return found | {"head_dim": d, "hidden_size": draw(st.sampled_from(hidden))}


def head_dim(config):
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def act_of(family):
    """The field that names the activation."""
    return {"Gemma 2": "hidden_activation", "Gemma 3": "hidden_activation", "GPT-2": "activation_function"}.get(
        family, "hidden_act"
    )


@st.composite
def rope(draw, kinds, pairs, length):
    """Parameters of a rope; those that go by the prompt's length are drawn on both sides of it."""
    kind = draw(st.sampled_from([kind for kind in kinds if kind != "dynamic" or pairs > 1]))
    found = {"rope_type": kind, "rope_theta": draw(st.sampled_from((10.0, 1e2, 1e4, 5e6)))}
    original = {"original_max_position_embeddings": draw(st.sampled_from((4, 16, 64)))}
    factors = st.lists(st.sampled_from((1.0, 1.3, 2.0, 7.5)), min_size=pairs, max_size=pairs)
    if kind in ("linear", "dynamic", "yarn", "llama3"):
        found["factor"] = draw(st.sampled_from((1.0, 1.5, 4.0, 32.0)))
    if kind == "yarn":
        found |= original | {"truncate": draw(st.booleans())}
        found |= draw(st.sampled_from(({}, {"attention_factor": 0.7}, {"beta_fast": 16.0, "beta_slow": 2.0})))
    if kind == "llama3":
        low = draw(st.sampled_from((0.5, 1.0, 2.0)))
        found |= original | {"low_freq_factor": low, "high_freq_factor": 4.0 * low}
    if kind == "longrope":
        found |= original | {"short_factor": draw(factors), "long_factor": draw(factors)}
        found["factor"] = draw(st.sampled_from((1.0, 4.0)))
    return found


@st.composite
def ropes(draw, family, config, length):
    """One rope, which may turn a part of each head where the family has that."""
    d, part = head_dim(config), 1.0
    if family in ("Phi-3", "GPT-NeoX"):
        wholes = [n / 16 for n in range(1, 17) if int(d * n / 16) == d * n / 16 and int(d * n / 16) % 2 == 0]
        part = draw(st.sampled_from(wholes or [1.0]))
    found = draw(rope(ROPES.get(family, EVERY), int(d * part) // 2, length))
    more = {}
    if family in ("Phi-3", "GPT-NeoX"):
        found["partial_rotary_factor"] = part
    if found["rope_type"] == "longrope" and family == "Phi-3":
        more["original_max_position_embeddings"] = found["original_max_position_embeddings"]
    if found["rope_type"] == "dynamic":
        shortest = max(1, -int(-length // found["factor"]))
        more["max_position_embeddings"] = draw(st.sampled_from((shortest, shortest + 5, MOST_POSITIONS)))
    return {"rope_parameters": found, **more}


@st.composite
def typed(draw, config, *, two_ropes=False):
    """Windows by the type of each layer."""
    count = config["num_hidden_layers"]
    kinds = draw(st.lists(st.sampled_from((FULL, SLIDING)), min_size=count, max_size=count))
    found = {"layer_types": kinds, "sliding_window": draw(WINDOWS)}
    if two_ropes:
        pairs = head_dim(config) // 2
        found["rope_parameters"] = {kind: draw(rope(ROPES["Gemma 3"], pairs, 0)) for kind in (FULL, SLIDING)}
    return found


@st.composite
def qwen(draw, config):
    on = draw(st.booleans())
    return {
        "use_sliding_window": on,
        "sliding_window": draw(WINDOWS),
        "max_window_layers": draw(st.integers(0, config["num_hidden_layers"])),
    }


@st.composite
def smollm(draw, config):
    count = config["num_hidden_layers"]
    found = {"no_rope_layers": draw(st.lists(st.integers(0, 1), min_size=count, max_size=count))}
    found |= {"use_sliding_window": draw(st.booleans()), "sliding_window": draw(WINDOWS)}
    return found | (draw(typed(config)) if draw(st.booleans()) else {})


@st.composite
def experts(draw, config, *, name, more=None):
    count = draw(st.integers(1, 8))
    found = {name: count, "num_experts_per_tok": draw(st.integers(1, count))}
    return found | (draw(more(config)) if more else {})


@st.composite
def sparse(draw, config):
    layers = st.lists(st.integers(0, config["num_hidden_layers"] - 1), max_size=2, unique=True)
    found = {"norm_topk_prob": draw(st.booleans()), "decoder_sparse_step": draw(st.integers(1, 2))}
    # transformers 5.17 drops a dimension of 1 when it writes experts, and cannot read what it wrote
    found |= {"mlp_only_layers": draw(layers), "moe_intermediate_size": draw(st.integers(2, 30))}
    return found | draw(qwen(config))


def as_gpt2(config):
    """The same sizes by the names of GPT-2."""
    names = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
    names |= {"intermediate_size": "n_inner", "max_position_embeddings": "n_positions"}
    return {names.get(name, name): value for name, value in config.items()}


FLAG, WINDOW = st.booleans(), st.one_of(st.none(), WINDOWS)
BIASES = {"attention_bias": FLAG, "mlp_bias": FLAG}
SOFT = {"attn_logit_softcapping": CAPS, "final_logit_softcapping": st.sampled_from((None, 5.0, 30.0))}
SCALAR = {"query_pre_attn_scalar": st.sampled_from((1, 5, 30, 256)), "attention_bias": FLAG}
FACTORS = ("attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling")
VARIED = {
    "Qwen3": {"attention_bias": FLAG},
    "Llama": BIASES,
    "Mistral": {"sliding_window": WINDOW},
    "Seed-OSS": {**BIASES, "attention_out_bias": FLAG},
    "Arcee": BIASES,
    "Gemma": {"attention_bias": FLAG},
    "Gemma 2": SOFT | SCALAR,
    "Gemma 3": SOFT | SCALAR,
    "Phi-3": {"sliding_window": WINDOW},
    "OLMo 2": {"attention_bias": FLAG},
    "OLMo 3": {"attention_bias": FLAG},
    "SmolLM3": BIASES,
    "Granite": BIASES | dict.fromkeys(FACTORS, SCALARS),
    "GPT-2": {"scale_attn_by_inverse_layer_idx": FLAG, "scale_attn_weights": FLAG},
    "GPT-NeoX": {"use_parallel_residual": FLAG, "attention_bias": FLAG},
    "Qwen3-MoE": {"attention_bias": FLAG},
    "Mixtral": {"sliding_window": WINDOW},
    "gpt-oss": {"attention_bias": FLAG},
}
"""Fields that vary on their own."""
LAYERWISE = {
    **dict.fromkeys(("Qwen3", "Qwen2"), qwen),
    **dict.fromkeys(("Ministral", "Gemma 2"), typed),
    **dict.fromkeys(("Gemma 3", "OLMo 3"), lambda config: typed(config, two_ropes=True)),
    "SmolLM3": smollm,
    "Mixtral": lambda config: experts(config, name="num_local_experts"),
    "Qwen3-MoE": lambda config: experts(config, name="num_experts", more=sparse),
    "gpt-oss": lambda config: experts(config, name="num_local_experts", more=typed),
}
"""Fields that go by the number of layers, or with each other."""
