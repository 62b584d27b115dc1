"""Every weight that a config calls for, by its name in a layer or in the model, with its shape as it is stored."""

from collections.abc import Iterator
from typing import Any

from engine.model.families.family import ExpertNames, Family, head_dim, num_kv_heads

Shape = tuple[int, ...]
Shapes = dict[str, Shape]


def shapes(family: Family, config: Any) -> Shapes:
    """The weights of the whole model. Experts are stacked, as transformers keeps them in memory."""
    named = dict(_ends(family, config))
    for index in range(config.num_hidden_layers):
        of_layer = layer_shapes(family, config, index)
        named |= {f"{family.layers}.{index}.{name}": shape for name, shape in of_layer.items()}
    return named


def layer_shapes(family: Family, config: Any, layer: int) -> Shapes:
    """The weights of one layer."""
    named = dict(_norms(family, config)) | dict(_attention(family, config))
    if family.experts is not None and family.is_sparse(config, layer):
        return named | dict(_experts(family.experts, config))
    return named | dict(_mlp(family, config))


def expert_parts(names: ExpertNames, config: Any, prefix: str) -> Shapes:
    """The weights of a layer's experts one by one, as a checkpoint may hold them."""
    assert names.parts is not None
    e, f = config.hidden_size, names.intermediate(config)
    of_parts = dict(zip(names.parts, ((f, e), (f, e), (e, f)), strict=True))
    every = ((part.format(x), shape) for x in range(config.num_local_experts) for part, shape in of_parts.items())
    return {f"{prefix}{name}.weight": shape for name, shape in every}


def _ends(family: Family, config: Any) -> Iterator[tuple[str, Shape]]:
    table = (config.vocab_size, config.hidden_size)
    yield f"{family.embedding}.weight", table
    if family.positions is not None:
        yield f"{family.positions}.weight", (config.max_position_embeddings, config.hidden_size)
    yield from _norm(family, family.final_norm, config.hidden_size)
    yield f"{family.unembedding}.weight", table


def _norm(family: Family, name: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (width,)
    if family.norm == "layer":
        yield f"{name}.bias", (width,)


def _norms(family: Family, config: Any) -> Iterator[tuple[str, Shape]]:
    for name in (family.attn_norm, family.attn_post_norm, family.mlp_norm, family.mlp_post_norm):
        if name is not None:
            yield from _norm(family, name, config.hidden_size)
    d, counts = head_dim(config), (config.num_attention_heads, num_kv_heads(config))
    for name, count in zip((family.query_norm, family.key_norm), counts, strict=True):
        if name is not None:
            yield f"{name}.weight", (count * d if family.whole_qk_norm else d,)


def _attention(family: Family, config: Any) -> Iterator[tuple[str, Shape]]:
    e, d = config.hidden_size, head_dim(config)
    q, kv = config.num_attention_heads * d, num_kv_heads(config) * d
    widths = (q, kv, kv) if len(family.qkv) == 3 else (q + 2 * kv,)
    for name, width in zip(family.qkv, widths, strict=True):
        yield from _linear(family, name, (width, e), biased="qkv" in family.biased(config))
    yield from _linear(family, family.output, (e, q), biased="output" in family.biased(config))
    if family.sinks is not None:
        yield family.sinks, (config.num_attention_heads,)


def _mlp(family: Family, config: Any) -> Iterator[tuple[str, Shape]]:
    e, f, biased = config.hidden_size, family.intermediate(config), family.biased(config)
    width = 2 * f // len(family.gate_up) if family.gated else f
    for name in family.gate_up:
        yield from _linear(family, name, (width, e), biased="gate_up" in biased)
    yield from _linear(family, family.down, (e, f), biased="down" in biased)


def _linear(family: Family, name: str, shape: Shape, *, biased: bool) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", shape[::-1] if family.transposed else shape
    if biased:
        yield f"{name}.bias", shape[:1]


def _experts(names: ExpertNames, config: Any) -> Iterator[tuple[str, Shape]]:
    n, e, f = config.num_local_experts, config.hidden_size, names.intermediate(config)
    yield f"{names.router}.weight", (n, e)
    if names.router_biased:
        yield f"{names.router}.bias", (n,)
    for name, (out, inner) in ((names.gate_up, (2 * f, e)), (names.down, (e, f))):
        yield name, (n, inner, out) if names.transposed else (n, out, inner)
        if names.biased:
            yield f"{name}_bias", (n, out)
