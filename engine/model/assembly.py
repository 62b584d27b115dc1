"""Family, config and named weights -> ``Decoder``: the one place where a weight's name becomes its meaning.

The weights come from a model in memory or from files, one at a time and in the order in which a pass needs them. What
is not a weight (epsilons, scales, the size of a head) comes as ``Constants``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.errors import ModelError
from engine.kernels.projection import Projection
from engine.model.decoder import Decoder, Rope, Sight
from engine.model.ends import Embedding, StoredEmbedding, Unembedding
from engine.model.families import Family, head_dim, num_kv_heads
from engine.model.layer import Heads, Layer
from engine.model.parts import Parts
from engine.model.stored import StoredProjection, in_blocks

WORKING_DTYPE = {
    torch.float64: torch.float64,
    torch.float32: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
}
"""Stored dtype of the weights -> dtype of the residual stream, of scores and of differences."""
RESCALING_ROPES = ("dynamic", "longrope")
"""Ropes whose tables depend on the length of the prompt."""


@dataclass(frozen=True)
class Constants:
    """Numbers of a model that are no weights: ``scales`` of the scores, one per layer; epsilons by the norm's name."""

    head_dim: int
    scales: Sequence[float]
    eps: Callable[[str], float]
    embedding_scale: float


def configured_constants(family: Family, config: Any, dtype: torch.dtype) -> Constants:
    """The constants that transformers gives a model of that config in ``dtype``, to which it rounds buffers."""
    scales = [family.scale_of(config, layer) for layer in range(config.num_hidden_layers)]
    factor = family.embedding_scale(config)
    if family.embedding_buffer is not None:
        factor = torch.tensor(factor, dtype=dtype, device="cpu").item()
    return Constants(head_dim(config), scales, lambda name: getattr(config, family.eps), factor)


def assemble(
    family: Family,
    config: Any,
    weights: Mapping[str, Tensor],
    *,
    constants: Constants,
    ropes: Mapping[str, Rope],
    name: str,
) -> Decoder:
    """The decoder of these weights, which are shared, not copied; without an unembedding, the embedding serves as one.

    Raises ``ModelError`` for no layers at all, and for an activation or a kind of attention that is not supported.
    """
    require_supported(family, config, constants, name)
    table = weights[f"{family.embedding}.weight"]
    parts = parts_of(family, config, weights, constants, WORKING_DTYPE[table.dtype])
    return decoder_of(
        parts,
        name=name,
        embedding=Embedding(table, constants.embedding_scale, parts.positions()),
        layers=tuple(parts.layer(index) for index in range(len(constants.scales))),
        projection=in_blocks(parts.linear(family.unembedding) if parts.is_untied() else Projection((table,))),
        ropes=ropes,
        device=table.device,
    )


def require_supported(family: Family, config: Any, constants: Constants, name: str) -> None:
    """Raise ``ModelError`` for what the config asks in vain."""
    if reason := family.refused(config):
        raise ModelError(f"the config of {name!r} asks for {reason}, which is not supported")
    if not constants.scales:
        raise ModelError(f"the model {name!r} has no layers; check num_hidden_layers in its config")


def parts_of(
    family: Family, config: Any, weights: Mapping[str, Tensor], constants: Constants, dtype: torch.dtype
) -> Parts:
    """What makes the parts of a decoder, whose stream is of ``dtype``."""
    heads = Heads(config.num_attention_heads, num_kv_heads(config), constants.head_dim)
    return Parts(family, config, weights, heads, constants.scales, constants.eps, dtype)


def decoder_of(
    parts: Parts,
    *,
    name: str,
    embedding: Embedding | StoredEmbedding,
    layers: Sequence[Layer],
    projection: Projection | StoredProjection,
    ropes: Mapping[str, Rope],
    device: torch.device,
) -> Decoder:
    """The decoder of these parts; ``projection`` gives the logits."""
    family, config = parts.family, parts.config
    return Decoder(
        name=name,
        embedding=embedding,
        layers=layers,
        sights=sights(family, config)[: len(layers)],
        final_norm=parts.norm(family.final_norm).to(projection.device),  # tiny, and read before it
        unembedding=Unembedding(projection, family.logits_scale(config), family.logits_cap(config)),
        ropes=ropes,
        heads=parts.heads,
        max_positions=_max_positions(family, config),
        dtype=parts.dtype,
        device=device,
        rope_by_length=any(rope.get("rope_type") in RESCALING_ROPES for rope in family.ropes(config).values()),
    )


def sights(family: Family, config: Any) -> tuple[Sight, ...]:
    """What the queries of every layer can see."""
    layers = range(config.num_hidden_layers)
    return tuple(Sight(family.window(config, layer), family.sinks is not None) for layer in layers)


def _max_positions(family: Family, config: Any) -> int:
    """The longest prompt; a dynamic rope stretches what the config says by its factor."""
    stretched = (rope for rope in family.ropes(config).values() if rope.get("rope_type") == "dynamic")
    factor = max((rope.get("factor", 1.0) for rope in stretched), default=1.0)
    return int(config.max_position_embeddings * factor)
