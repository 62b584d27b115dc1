"""L2 and cosine distance between a baseline vector and the same vector under a knockout.

Both come from the baseline b and the difference Δ, never from two nearly equal vectors. Axes: ``m`` difference row,
``h`` vector (site or head), ``c`` channel.
"""

from collections.abc import Iterable

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from engine.sweep import Readout, Site

BUFFERED_CELLS = 1 << 22
"""Activations that wait to become distances together: a small prompt needs one round, a long one stays bounded."""


def distances(baseline: Float[Tensor, "m h c"], delta: Float[Tensor, "m h c"]) -> Float[Tensor, "m h 2"]:
    """(|Δ|, 1 - cos(b, b + Δ)) of every vector, reduced in float64 where the device has it.

    With Δ⊥ the part of Δ across b and m = b + Δ, for cos > 0: 1 - cos = |Δ⊥|² / (|m|²·(1 + cos)). The cosine with a
    zero vector is NaN.
    """
    wide = torch.float32 if baseline.device.type == "mps" else torch.float64
    moved = baseline + delta
    size, moved_size = _norm(baseline, wide), _norm(moved, wide)
    along = (baseline * delta).sum(-1, dtype=wide) / size.square()
    across = torch.addcmul(delta, baseline, along.to(delta.dtype)[..., None], value=-1.0)
    cosine = size * (1 + along) / moved_size
    close = _norm(across, wide).square() / (moved_size.square() * (1 + cosine))
    distance = torch.where(cosine > 0, close, 1 - cosine).masked_fill(moved_size == 0, torch.nan)
    return torch.stack((_norm(delta, wide), distance), dim=-1).to(delta.dtype)


def _norm(x: Float[Tensor, "m h c"], wide: torch.dtype) -> Float[Tensor, "m h"]:
    return torch.linalg.vector_norm(x, dim=-1, dtype=wide)


class DistanceBuffer:
    """Turns the sites of many layers into distances, several layers at a time; everything stays on the device."""

    def __init__(self, prompt_of_variant: Int[Tensor, " m"]) -> None:
        self._prompt_of_variant = prompt_of_variant
        self._waiting: list[tuple[Site, Site]] = []
        self._cells = 0
        self._done: list[Float[Tensor, "l m site 2"]] = []

    def add(self, updates: Site, heads: Site) -> None:
        """Take one layer's sites."""
        self._waiting.append((updates, heads))
        self._cells += updates.delta.numel() + heads.delta.numel()
        if self._cells > BUFFERED_CELLS:
            self._reduce()

    def result(self) -> Float[Tensor, "l m site 2"]:
        """The distances of all layers: Full, Attn, then every head."""
        self._reduce()
        return torch.cat(self._done)

    def _reduce(self) -> None:
        if self._waiting:
            sites = [self._distances(kind) for kind in zip(*self._waiting, strict=True)]
            self._done.append(torch.cat(sites, dim=2))
        self._waiting, self._cells = [], 0

    def _distances(self, layers: tuple[Site, ...]) -> Float[Tensor, "l m h 2"]:
        baseline = torch.cat([site.baseline.index_select(0, self._prompt_of_variant) for site in layers])
        measured = distances(baseline, torch.cat([site.delta for site in layers]))
        return rearrange(measured, "(l m) h metric -> l m h metric", l=len(layers))


def measure_readouts(
    readouts: Iterable[Readout], prompt_of_variant: Int[Tensor, " m"]
) -> tuple[Float[np.ndarray, "l m site 2"], Float[np.ndarray, " passed"], Float[Tensor, "r e"]]:
    """Consume a sweep: the distances of its measured layers, the largest magnitude in the stream that leaves each
    passed layer (NaN or infinite where the numbers broke), and the stream that leaves the last. One transfer.
    """
    buffer, magnitudes, residual = DistanceBuffer(prompt_of_variant), [], None
    for readout in readouts:
        residual = readout.residual
        magnitudes.append(torch.linalg.vector_norm(residual, ord=torch.inf))
        if readout.updates is not None and readout.heads is not None:
            buffer.add(readout.updates, readout.heads)
    assert residual is not None
    measured = buffer.result()
    host = torch.cat((measured.flatten(), torch.stack(magnitudes))).cpu().numpy()
    return host[: measured.numel()].reshape(measured.shape), host[measured.numel() :], residual
