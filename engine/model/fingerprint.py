"""Which model is it? A digest of the weights and of the numbers beside them, however it was loaded and laid out."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from engine.kernels.norms import Norm
from engine.kernels.projection import Projection
from engine.model.decoder import Decoder
from engine.model.ends import StoredEmbedding
from engine.model.foreign import Foreign
from engine.model.layer import Layer
from engine.model.stored import StoredProjection
from engine.model.view import View

CHUNK_CELLS = 1 << 20
PROBED_POSITIONS = 1024


UNTOLD = ("dtype", "_name_or_path", "transformers_version", "architectures")
"""Of a configuration, what is not the model's."""


def fingerprint(view: View) -> str:
    """SHA-256 over all weights in the model's precision, and over the numbers beside them: heads, windows, scales and
    epsilons, or the whole configuration where the model runs its own layers.

    The same for a model on any device, packed or not, in memory or in its files. A gigabyte takes about half a second.
    """
    if isinstance(view, Foreign):
        return _foreign(view)
    assert isinstance(view, Decoder)
    return _fused(view)


def _fused(decoder: Decoder) -> str:
    with ThreadPoolExecutor() as pool:
        vocabulary = pool.submit(_digest, _vocabulary(decoder))
        layers = [_told(layer, pool) for layer in decoder.layers]
        last = _digests(decoder.final_norm.weights)
    epsilons = [*chain.from_iterable(told.epsilons for told in layers), *_epsilons(decoder.final_norm)]
    whole = hashlib.sha256(repr(_numbers(decoder, [told.numbers for told in layers], epsilons)).encode())
    ends = (decoder.embedding.positions, decoder.unembedding.projection.bias)
    for part in (
        vocabulary.result(),
        *chain.from_iterable(told.matrices for told in layers),
        *(*chain.from_iterable(told.norms for told in layers), *last),
        *chain.from_iterable(told.biases for told in layers),
        *chain.from_iterable(told.sinks for told in layers),
        *_digests(tensor for tensor in ends if tensor is not None),
    ):
        whole.update(part)
    return f"sha256:{whole.hexdigest()}"


def _foreign(view: Foreign) -> str:
    told = {name: value for name, value in view.model.config.to_dict().items() if name not in UNTOLD}
    whole = hashlib.sha256(json.dumps([view.architecture, told], sort_keys=True, default=str).encode())
    for name, weight in sorted(view.model.state_dict().items()):
        whole.update(name.encode() + _digest(weight))
    return f"sha256:{whole.hexdigest()}"


def rope_probe(view: View) -> list[float] | None:
    """The means of the rotary tables: another base or scaling moves them, another device by rounding only. None where
    the model keeps them to itself.
    """
    if not isinstance(view, Decoder):
        return None
    num_positions = min(PROBED_POSITIONS, view.max_positions)
    tables = (table for rope in view.ropes.values() for table in rope(num_positions))
    return [round(table.double().mean().item(), 5) for table in tables]


@dataclass(frozen=True, kw_only=True)
class _Told:
    """What a layer tells of itself: its numbers, and digests of its weights by their kind."""

    numbers: tuple[Any, ...]
    epsilons: list[float]
    matrices: list[bytes]
    norms: list[bytes]
    biases: list[bytes]
    sinks: list[bytes]


def _told(layer: Layer, pool: ThreadPoolExecutor) -> _Told:
    """Done with the layer: nothing of it is held any more."""
    norms, projections, sinks = list(layer.norms()), list(layer.projections()), layer.attention.scoring.sinks
    return _Told(
        numbers=_of_layer(layer),
        epsilons=[eps for norm in norms for eps in _epsilons(norm)],
        matrices=list(pool.map(_digest, [projection.weights for projection in projections])),
        norms=_digests(weight for norm in norms for weight in norm.weights),
        biases=_digests(projection.bias for projection in projections if projection.bias is not None),
        sinks=[] if sinks is None else _digests([sinks]),
    )


def _numbers(decoder: Decoder, layers: list[tuple[Any, ...]], epsilons: list[float]) -> tuple[Any, ...]:
    """What is no weight."""
    ends = decoder.embedding.scale, decoder.unembedding.scale, decoder.unembedding.soft_cap
    table = decoder.vocab_size, decoder.hidden_size
    return table, decoder.max_positions, tuple(layers), tuple(epsilons), *_unusual(ends, (1.0, 1.0, None))


def _of_layer(layer: Layer) -> tuple[Any, ...]:
    """The numbers of a layer; those that most layers lack are left out where they are."""
    attention = layer.attention
    usual = attention.heads, attention.window, round(attention.scoring.scale, 9), layer.mlp.name
    more = attention.scoring.soft_cap, layer.multiplier, layer.parallel, attention.rope, attention.by_head
    return *usual, *_unusual(more, (None, 1.0, False, "default", False))


def _unusual(found: tuple[Any, ...], usual: tuple[Any, ...]) -> tuple[Any, ...]:
    return () if found == usual else found


def _epsilons(norm: Norm) -> list[float]:
    return [eps.item() for eps in norm.epsilons]


def _vocabulary(decoder: Decoder) -> Iterator[Tensor]:
    """Unembedding and embedding; one that is shared counts once."""
    embedding, projection = decoder.embedding, decoder.unembedding.projection
    if isinstance(projection, Projection):
        assert not isinstance(embedding, StoredEmbedding)
        if projection.weights[0].data_ptr() != embedding.table.data_ptr():
            yield from projection.weights
        yield embedding.table
    else:
        assert isinstance(projection, StoredProjection)
        assert isinstance(embedding, StoredEmbedding)
        if projection.table is not embedding.table:
            yield from projection.table.blocks
        yield from embedding.table.blocks


def _digests(weights: Iterable[Tensor]) -> list[bytes]:
    return [_digest((weight,)) for weight in weights]


def _digest(weights: Iterable[Tensor]) -> bytes:
    """The digest of one matrix, or of several laid end to end: whether they are joined makes no difference."""
    digest = hashlib.sha256()
    for tensor in weights:
        plain = tensor.to_dense() if tensor.is_mkldnn else tensor
        for chunk in plain.detach().reshape(-1).split(CHUNK_CELLS):
            wide = chunk if chunk.dtype == torch.float64 else chunk.float()  # narrower cells widen without loss
            digest.update(wide.cpu().contiguous().numpy().data)
    return digest.digest()
