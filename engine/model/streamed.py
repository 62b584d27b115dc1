"""Family, config and files -> a ``Decoder`` whose weights stay in the files, but for what is small."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from engine.model.assembly import (
    WORKING_DTYPE,
    Constants,
    decoder_of,
    parts_of,
    require_supported,
)
from engine.model.blocks import Shelf, blocks_on
from engine.model.decoder import Decoder, Rope
from engine.model.ends import StoredEmbedding
from engine.model.families import Family
from engine.model.layer import Layer
from engine.model.stored import StoredProjection, StoredTable
from engine.model.streaming import Streamed
from engine.model.weights import Weights


def assemble_streamed(
    family: Family,
    config: Any,
    weights: Weights,
    *,
    constants: Constants,
    ropes: Mapping[str, Rope],
    name: str,
    split: bool,
) -> Decoder:
    """As ``assemble``, of weights that a pass reads when it needs them. Final norm and learned positions stay in
    memory. ``split``: see ``Projection``.
    """
    require_supported(family, config, constants, name)
    weights = replace(weights, device=torch.empty(0, device=weights.device).device)  # with its index
    parts = parts_of(family, config, weights, constants, WORKING_DTYPE[weights.dtype])

    def layer(index: int, found: Mapping[str, Tensor]) -> Layer:
        return _as_resident(replace(parts, weights=found).layer(index), weights.device, split=split)

    shelves = layer_shelves(family, weights, len(constants.scales))
    inward, outward = (_table(weights, end) for end in (family.embedding, family.unembedding))
    bias = weights.get(f"{family.unembedding}.bias")
    assert inward is not None
    return decoder_of(
        parts,
        name=name,
        embedding=StoredEmbedding(inward, constants.embedding_scale, parts.positions()),
        layers=Streamed(shelves, layer, blocks_on(weights.device, max(shelf.num_bytes for shelf in shelves))),
        projection=StoredProjection(outward or inward, None if bias is None else bias.to(parts.dtype), split),
        ropes=ropes,
        device=weights.device,
    )


def layer_shelves(family: Family, weights: Weights, num_layers: int) -> list[Shelf]:
    """The tensors of every layer."""
    names, before = defaultdict[str, list[str]](list), f"{family.layers}."
    for name in weights:
        if name.startswith(before):
            names[name.removeprefix(before).split(".")[0]].append(name)
    each = (names[str(index)] for index in range(num_layers))
    return [Shelf({n: weights.tensors[n] for n in some}, {n: weights.dtype_of(n) for n in some}) for some in each]


def _table(weights: Weights, name: str) -> StoredTable | None:
    stored = weights.tensors.get(f"{name}.weight")
    return None if stored is None else StoredTable(stored, weights.dtype, weights.device)


def _as_resident(layer: Layer, device: torch.device, *, split: bool) -> Layer:
    """The layer as it would be multiplied if it stayed: a CPU's is not joined before it is packed."""
    for projection in layer.projections():
        projection.split = split
        if device.type != "cpu":
            projection.join()
    return layer
