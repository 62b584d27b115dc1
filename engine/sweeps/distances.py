"""L2 and cosine distance between a baseline vector and the same vector under a knockout.

Both come from the baseline b and the difference Δ, never from two nearly equal vectors. Axes: ``m`` difference row,
``h`` vector (site or head), ``c`` channel.
"""

from collections.abc import Iterable

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from engine.kernels.difference import RESOLVED
from engine.sweeps.readout import Limits, Readout, Site

SMALL = 0.5
"""Share of the baseline below which a vector is rather taken as it is than as a difference."""


def distances(
    baseline: Float[Tensor, "b h c"],
    delta: Float[Tensor, "m h c"],
    prompt: Int[Tensor, " m"],
    left: Float[Tensor, "m h c"] | None = None,
    *,
    relative: bool = False,
) -> Float[Tensor, "m h metric"]:
    """(|Δ|, 1 - cos(b, b + Δ)) of every vector, where ``prompt`` names the baseline row of each difference row.

    Both vectors are first scaled to their largest channels, so that no square underflows or overflows; the scalars are
    combined in float64 where the device has it. The cosine with a zero vector is NaN; both are where a vector is not
    finite. What is ``left`` of the baseline, b + Δ, may be given beside Δ: where it is small, the sum would lose its
    digits, and cosines are those of ``left``. With ``relative`` comes a third, |Δ| / |b|.
    """
    unit_b, largest_b = _scaled(baseline)
    unit, largest = _scaled(delta)
    b, largest_b = unit_b.index_select(0, prompt), largest_b.index_select(0, prompt)
    size = _wide(torch.linalg.vector_norm(unit_b, dim=-1)).index_select(0, prompt)
    most = torch.maximum(largest, largest_b)
    turned, keep, scale = unit, largest_b / most, largest / most  # m, divided by the larger, is b·keep + Δ·scale
    if left is not None:
        is_small = torch.linalg.vector_norm(left / largest_b, dim=-1, keepdim=True) < SMALL * size[..., None]
        turned = torch.where(is_small, _scaled(left)[0], unit)
        keep, scale = keep.masked_fill(is_small, 0.0), scale.masked_fill(is_small, 1.0)
    l2 = _wide(torch.linalg.vector_norm(unit, dim=-1)) * _wide(largest[..., 0])
    l2 = l2 + 0 * size  # NaN where the baseline is not finite, however small the difference
    metrics = [l2, _cosine_distances(b, size, turned, keep, scale)]
    if relative:
        baseline_norm = size * _wide(largest_b[..., 0])
        metrics.append((l2 / baseline_norm).masked_fill(baseline_norm == 0, torch.nan))
    return torch.stack(metrics, dim=-1).to(delta.dtype)


def _cosine_distances(
    b: Float[Tensor, "m h c"],
    size: Float[Tensor, "m h"],
    turned: Float[Tensor, "m h c"],
    keep: Float[Tensor, "m h 1"],
    scale: Float[Tensor, "m h 1"],
) -> Float[Tensor, "m h"]:
    """1 - cos(b, m) for m = b·keep + turned·scale, where ``size`` is |b|.

    With m⊥ the part of m across b, for cos > 0: 1 - cos = |m⊥|² / (|m|²·(1 + cos)).
    """
    along = _wide((b * turned).sum(-1)) / size.square()
    across = turned - b * along.to(turned.dtype)[..., None]
    moved_size = _wide(torch.linalg.vector_norm(b * keep + turned * scale, dim=-1))
    keep, scale = _wide(keep[..., 0]), _wide(scale[..., 0])
    cosine = size * (keep + along * scale) / moved_size
    close = (_wide(torch.linalg.vector_norm(across, dim=-1)) * scale / moved_size).square() / (1 + cosine)
    distance = torch.where(cosine > 0, close, 1 - cosine)
    return distance.masked_fill(moved_size <= RESOLVED * torch.finfo(b.dtype).eps * size * keep, torch.nan)


def _scaled(x: Float[Tensor, "n h c"]) -> tuple[Float[Tensor, "n h c"], Float[Tensor, "n h 1"]]:
    """Vectors whose largest channel is 1, and by how much they were divided."""
    largest = x.abs().amax(-1, keepdim=True).clamp_(min=torch.finfo(x.dtype).tiny)
    return x / largest, largest


def _wide(x: Float[Tensor, "m h"]) -> Float[Tensor, "m h"]:
    return x if x.device.type == "mps" else x.double()


class DistanceBuffer:
    """Turns the sites of many layers into distances, several layers at a time; everything stays on the device."""

    def __init__(self, reading_of_variant: Int[Tensor, " m"], buffered_cells: int, *, relative: bool = False) -> None:
        self._reading_of_variant = reading_of_variant
        self._buffered_cells, self._relative = buffered_cells, relative
        self._waiting: list[tuple[Site, ...]] = []
        self._cells = 0
        self._done: list[Float[Tensor, "l m site metric"]] = []

    def add(self, sites: tuple[Site, ...]) -> None:
        """Take one layer's sites. What lies on one device becomes distances there."""
        if self._waiting and self._waiting[0][0].delta.device != sites[0].delta.device:
            self._reduce()
        self._waiting.append(sites)
        self._cells += sum(site.delta.numel() for site in sites)
        if self._cells > self._buffered_cells:
            self._reduce()

    def result(self) -> Float[Tensor, "l m site metric"]:
        """The distances of all layers, sites in the order in which they came."""
        self._reduce()
        return torch.cat(self._done)

    def _reduce(self) -> None:
        if self._waiting:
            sites = [self._distances(layers) for layers in zip(*self._waiting, strict=True)]
            self._done.append(torch.cat(sites, dim=2).to(self._reading_of_variant.device))
        self._waiting, self._cells = [], 0

    def _distances(self, layers: tuple[Site, ...]) -> Float[Tensor, "l m h metric"]:
        """Layers laid end to end are rows like any others, each layer with baselines of its own."""
        baseline = torch.cat([site.baseline for site in layers])
        delta = layers[0].delta if len(layers) == 1 else torch.cat([site.delta for site in layers])
        left = _left(layers)
        baseline, delta, *left = (
            rearrange(x, "n (h c) -> n h c", h=layers[0].num_vectors) for x in (baseline, delta, *left)
        )
        shifts = torch.arange(len(layers), device=delta.device) * len(layers[0].baseline)
        of_variant = self._reading_of_variant.to(delta.device)
        reading = rearrange(rearrange(shifts, "l -> l 1") + of_variant, "l m -> (l m)")
        at_once = max(1, self._buffered_cells // delta[0].numel())
        parts = zip(*(x.split(at_once) for x in (delta, reading, *left)), strict=True)
        measured = torch.cat(
            [distances(baseline, part, of, *rest, relative=self._relative) for part, of, *rest in parts]
        )
        return rearrange(measured, "(l m) h metric -> l m h metric", l=len(layers))


def _left(layers: tuple[Site, ...]) -> list[Float[Tensor, "n c"]]:
    """What the layers' sites know to be left, laid end to end; nothing where no site knows it."""
    if all(site.left is None for site in layers):
        return []
    return [torch.cat([torch.full_like(site.delta, torch.inf) if site.left is None else site.left for site in layers])]


def measure_readouts(
    readouts: Iterable[Readout], reading_of_variant: Int[Tensor, " m"], *, limits: Limits, relative: bool = False
) -> tuple[Float[Tensor, "l m site metric"], Float[Tensor, "r e"]]:
    """Consume a sweep: the distances of its measured layers, still on the device, and the stream that leaves the last.

    The metrics are L2, cosine and, where they were asked for, the relative L2 and the hidden share of attention. Where
    a vector at the query is not finite, so is its l2_distance.
    """
    buffer, residual = DistanceBuffer(reading_of_variant, limits.buffered_cells, relative=relative), None
    masses = []
    for readout in readouts:
        residual = readout.residual
        if readout.sites:
            buffer.add(readout.sites)
        if readout.masses is not None:
            masses.append(_by_site(readout.masses, readout.sites).to(reading_of_variant.device))
    assert residual is not None
    cells = buffer.result()
    if masses:
        cells = torch.cat((cells, rearrange(torch.stack(masses), "l m site -> l m site 1")), dim=-1)
    return cells, residual


def _by_site(masses: Float[Tensor, "m h"], sites: tuple[Site, ...]) -> Float[Tensor, "m site"]:
    """The share of each head at the sites that heads have, and the mean over heads at the others."""
    mean = masses.mean(-1, keepdim=True)
    return torch.cat([mean if site.num_vectors == 1 else masses for site in sites], dim=1)
