"""Which model is it? A digest of the weights and of the numbers beside them, however it was loaded and laid out."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from engine.kernels.norms import Norm
from engine.kernels.projection import Projection
from engine.model.decoder import Decoder
from engine.model.layer import Layer

CHUNK_CELLS = 1 << 22
PROBED_POSITIONS = 1024


def fingerprint(decoder: Decoder) -> str:
    """SHA-256 over all weights in the decoder's precision, and over heads, windows, scales and epsilons.

    The same for a model on any device, packed or not. A gigabyte takes about half a second.
    """
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(_digest, [_unembedding_first(decoder), *decoder.projections()]))
    whole = hashlib.sha256(repr(_numbers(decoder)).encode())
    for part in (*digests, *(_digest(weight) for weight in _small(decoder))):
        whole.update(part)
    return f"sha256:{whole.hexdigest()}"


def rope_probe(decoder: Decoder) -> tuple[float, ...]:
    """The means of the rotary tables: another base or scaling moves them, another device by rounding only."""
    num_positions = min(PROBED_POSITIONS, decoder.max_positions)
    tables = (table for rope in decoder.ropes.values() for table in rope(num_positions))
    return tuple(round(table.double().mean().item(), 5) for table in tables)


def _numbers(decoder: Decoder) -> tuple[Any, ...]:
    """What is no weight."""
    layers = [_of_layer(layer) for layer in decoder.layers]
    epsilons = [eps.item() for norm in _norms(decoder) for eps in norm.epsilons]
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


def _unembedding_first(decoder: Decoder) -> tuple[Tensor, ...]:
    """Both vocabulary matrices; one that is shared counts once."""
    table, weights = decoder.embedding.table, decoder.unembedding.projection.weights
    return (table,) if weights[0].data_ptr() == table.data_ptr() else (*weights, table)


def _small(decoder: Decoder) -> Iterator[Tensor]:
    """Norm weights, biases, sinks and learned positions."""
    yield from (weight for norm in _norms(decoder) for weight in norm.weights)
    yield from (projection.bias for projection in decoder.projections() if projection.bias is not None)
    sinks = (layer.attention.scoring.sinks for layer in decoder.layers)
    more = (*sinks, decoder.embedding.positions)
    yield from (tensor for tensor in more if tensor is not None)


def _norms(decoder: Decoder) -> Iterator[Norm]:
    for layer in decoder.layers:
        yield from layer.norms()
    yield decoder.final_norm


def _digest(weights: Projection | Tensor | tuple[Tensor, ...]) -> bytes:
    """The digest of one matrix, or of several laid end to end: whether they are joined makes no difference."""
    tensors = weights.weights if isinstance(weights, Projection) else weights
    digest = hashlib.sha256()
    for tensor in (tensors,) if isinstance(tensors, Tensor) else tensors:
        plain = tensor.to_dense() if tensor.is_mkldnn else tensor
        for chunk in plain.detach().reshape(-1).split(CHUNK_CELLS):
            digest.update(_bytes(chunk))
    return digest.digest()


def _bytes(cells: Tensor) -> bytes:
    """The cells in float32, or float64 where they are; narrower ones widen without loss."""
    wide = cells if cells.dtype == torch.float64 else cells.float()
    return wide.cpu().contiguous().numpy().tobytes()
