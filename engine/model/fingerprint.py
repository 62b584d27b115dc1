"""Which model is it? A digest of the weights and of the numbers beside them, however it was loaded and laid out."""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from engine.kernels.difference import RMSNorm
from engine.kernels.projection import Projection
from engine.model.decoder import Decoder, Layer
from engine.model.foreign import Foreign
from engine.model.view import View

CHUNK_CELLS = 1 << 22
PROBED_POSITIONS = 1024


UNTOLD = ("dtype", "_name_or_path", "transformers_version", "architectures")
"""Of a configuration, what is not the model's."""


def fingerprint(view: View) -> str:
    """SHA-256 over all weights in the model's precision, and over the numbers beside them: heads, windows, scales and
    epsilons, or the whole configuration where the model runs its own layers.

    The same for a model on any device, packed or not. A gigabyte takes about half a second.
    """
    if isinstance(view, Foreign):
        return _foreign(view)
    assert isinstance(view, Decoder)
    return _fused(view)


def _fused(decoder: Decoder) -> str:
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(_digest, [_unembedding_first(decoder), *decoder.projections()]))
    whole = hashlib.sha256(repr(_numbers(decoder)).encode())
    for part in (*digests, *(_digest(weight) for weight in _small(decoder))):
        whole.update(part)
    return f"sha256:{whole.hexdigest()}"


def _foreign(view: Foreign) -> str:
    told = {name: value for name, value in view.model.config.to_dict().items() if name not in UNTOLD}
    whole = hashlib.sha256(json.dumps([view.architecture, told], sort_keys=True, default=str).encode())
    for name, weight in sorted(view.model.state_dict().items()):
        whole.update(name.encode() + _digest(weight))
    return f"sha256:{whole.hexdigest()}"


def rope_probe(decoder: View) -> list[float] | None:
    """The means of the rotary tables: another base or scaling moves them, another device by rounding only. None where
    the model keeps them to itself.
    """
    if not isinstance(decoder, Decoder):
        return None
    cos, sin = decoder.rope(min(PROBED_POSITIONS, decoder.max_positions))
    return [round(table.double().mean().item(), 5) for table in (cos, sin)]


def _numbers(decoder: Decoder) -> tuple[Any, ...]:
    """What is no weight."""
    layers = [
        (layer.attention.heads, layer.attention.window, round(layer.attention.scale, 9), layer.mlp.activation.name)
        for layer in decoder.layers
    ]
    norms = [norm.eps.item() for norm in _norms(decoder)]
    return tuple(decoder.embedding.shape), decoder.max_positions, tuple(layers), tuple(norms)


def _unembedding_first(decoder: Decoder) -> tuple[Tensor, ...]:
    """Both vocabulary matrices; one that is shared counts once."""
    shared = decoder.unembedding.weights[0].data_ptr() == decoder.embedding.data_ptr()
    return (decoder.embedding,) if shared else (*decoder.unembedding.weights, decoder.embedding)


def _small(decoder: Decoder) -> Iterator[Tensor]:
    """Norm weights and biases."""
    yield from (norm.weight for norm in _norms(decoder))
    yield from (projection.bias for projection in decoder.projections() if projection.bias is not None)


def _norms(decoder: Decoder) -> Iterator[RMSNorm]:
    for layer in decoder.layers:
        yield from _layer_norms(layer)
    yield decoder.final_norm


def _layer_norms(layer: Layer) -> Iterator[RMSNorm]:
    yield layer.attn_norm
    if layer.attention.qk_norm is not None:
        yield layer.attention.qk_norm
    yield layer.mlp_norm


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
