"""Baseline rows with the differences that a knockout makes, carried together through a layer.

Subtracting two nearly equal activations destroys small effects, so no two activations are ever subtracted: every
step maps (x, Δ) to (f(x), f(x + Δ) - f(x)) by a form in which Δ enters as a factor. The result keeps its relative
accuracy however small Δ is. Baseline and difference rows lie in one tensor, so that a weight matrix multiplies both
in one product.

Axes: ``r`` baseline row, ``m`` difference row, ``n`` = r + m, ``c`` channel (e residual, f MLP, ...).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Origins:
    """The baseline row of each difference row; known on the host, so that rows can be cut without a wait."""

    host: Int[np.ndarray, " m"]
    device: torch.device
    _parts: dict[tuple[int, int], tuple[Tensor, "Origins"]] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.host)

    @cached_property
    def rows(self) -> Int[Tensor, " m"]:
        return torch.from_numpy(self.host).to(self.device, non_blocking=True)

    @cached_property
    def only(self) -> int | None:
        """The one baseline row that all differences belong to, if there is just one."""
        return int(self.host[0]) if len(self.host) and (self.host == self.host[0]).all() else None

    def take(self, baseline: Float[Tensor, "r ... c"]) -> Float[Tensor, "_ ... c"]:
        """The baseline row of every difference row; a single row, to be broadcast, where all share one."""
        return baseline.index_select(0, self.rows) if self.only is None else baseline[self.only : self.only + 1]

    def part(self, start: int, stop: int) -> tuple[Int[Tensor, " r"], "Origins"]:
        """The distinct baseline rows that differences ``start`` to ``stop`` need, and their origins among those."""
        if (start, stop) not in self._parts:
            needed, inverse = np.unique(self.host[start:stop], return_inverse=True)
            rows = torch.from_numpy(needed).to(self.device, non_blocking=True)
            self._parts[start, stop] = rows, Origins(inverse, self.device)
        return self._parts[start, stop]

    def none(self) -> "Origins":
        """Origins of no difference row at all."""
        return Origins(self.host[:0], self.device)


@dataclass(frozen=True, slots=True)
class Carried:
    """Baseline rows first, difference rows behind them; a row may be divided into heads."""

    rows: Float[Tensor, "n ... c"]
    num_baseline: int
    origins: Origins

    @property
    def baseline(self) -> Float[Tensor, "r ... c"]:
        return self.rows[: self.num_baseline]

    @property
    def delta(self) -> Float[Tensor, "m ... c"]:
        return self.rows[self.num_baseline :]

    def split(self, rows: Float[Tensor, "n ... c2"]) -> tuple[Float[Tensor, "r ... c2"], Float[Tensor, "m ... c2"]]:
        """Baseline and difference part of other rows in the same order."""
        r = self.num_baseline
        baseline, delta = rows.split_with_sizes((r, len(rows) - r))
        return baseline, delta

    def with_rows(self, rows: Float[Tensor, "n ... c2"]) -> "Carried":
        return Carried(rows, self.num_baseline, self.origins)

    def chunks(self, max_rows: int) -> Iterator[tuple["Carried", slice, int]]:
        """Parts of about ``max_rows`` rows: (part, the rows of the whole that it gives, how many of its first to skip).

        A part with difference rows brings along the few baseline rows they differ from, which it only borrows.
        """
        r = self.num_baseline
        for start in range(0, r, max_rows):
            place = slice(start, min(start + max_rows, r))
            yield Carried(self.rows[place], place.stop - place.start, self.origins.none()), place, 0
        for start in range(0, len(self.origins), max_rows):
            stop = min(start + max_rows, len(self.origins))
            needed, origins = self.origins.part(start, stop)
            rows = torch.cat((self.baseline.index_select(0, needed), self.delta[start:stop]))
            yield Carried(rows, len(needed), origins), slice(r + start, r + stop), len(needed)


def carried(baseline: Float[Tensor, "r c"], delta: Float[Tensor, "m c"], origins: Origins) -> Carried:
    """Lay ``delta`` behind ``baseline``."""
    return Carried(torch.cat((baseline, delta)), len(baseline), origins)


def carry_in_chunks(step: Callable[[Carried], Carried], x: Carried, *, max_rows: int) -> Carried:
    """``step(x)`` with at most about ``max_rows`` rows in work at once. ``step`` must treat rows independently."""
    if len(x.rows) <= max_rows:
        return step(x)
    out = None
    for part, place, borrowed in x.chunks(max_rows):
        rows = step(part).rows[borrowed:]
        out = rows.new_empty(len(x.rows), rows.shape[1]) if out is None else out
        out[place] = rows
    assert out is not None
    return x.with_rows(out)


@dataclass(frozen=True, slots=True)
class RMSNorm:
    """Root-mean-square norm over the last axis (Zhang & Sennrich 2019, arXiv 1910.07467)."""

    weight: Float[Tensor, "... c"]
    eps: Float[Tensor, ""]

    def __call__(self, x: Float[Tensor, "... c"]) -> Float[Tensor, "... c"]:
        return x * self._inverse_rms(x) * self.weight

    def carry(self, x: Carried) -> Carried:
        """With s and s' the scales 1/√(mean(x²) + eps) before and after, and δ = mean(Δ(2x + Δ)) the growth of the mean
        square: s' - s = -δ·(s·s')² / (s + s'), and (x + Δ)s' - xs = Δs' + x(s' - s) = Δs + (x + Δ)(s' - s). The form
        with the smaller scale cancels nothing, whether Δ dwarfs x or takes it to 0.
        """
        if not len(x.origins):
            return x.with_rows(self(x.rows))
        baseline, delta = x.split(x.rows)
        origin = x.origins.take(baseline)
        there = torch.cat((baseline, origin + delta))
        scales = self._inverse_rms(there)
        (scale, moved_scale), (_, moved) = x.split(scales), x.split(there)
        scale = x.origins.take(scale)
        growth = torch.linalg.vecdot(delta, origin + moved)[..., None]
        both = scale * moved_scale
        change = growth.mul_(both).mul_(both).div_(scale + moved_scale)
        shift = torch.where(moved_scale > scale, moved, origin).mul_(change)
        torch.minimum(scale, moved_scale, out=moved_scale)
        out = x.rows * scales
        x.split(out)[1].sub_(shift, alpha=1 / x.rows.shape[-1])
        return x.with_rows(out.mul_(self.weight))

    def _inverse_rms(self, x: Float[Tensor, "... c"]) -> Float[Tensor, "... 1"]:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return torch.addcmul(self.eps, norm, norm, value=1 / x.shape[-1]).rsqrt_()


@dataclass(frozen=True, slots=True)
class Activation:
    """An elementwise f and its finite difference ``(x, f(x), Δ) -> f(x + Δ) - f(x)``; x may be one row for all."""

    name: str
    value: Callable[[Tensor], Tensor]
    difference: Callable[[Tensor, Tensor, Tensor], Tensor]


def silu_difference(
    x: Float[Tensor, "_ f"], value: Float[Tensor, "_ f"], delta: Float[Tensor, "m f"]
) -> Float[Tensor, "m f"]:
    """silu(x + Δ) - silu(x), to full relative accuracy for any Δ.

    With x' = x + Δ: silu(x') - silu(x) = Δ·σ(x') + x·(σ(x') - σ(x)), and from (p - q)/(p + q) = tanh(Δ/2) for
    p = σ(x')·σ(-x), q = σ(x)·σ(-x'): x·(σ(x') - σ(x)) = tanh(Δ/2)·(silu(x) + σ(x')·(x - 2·silu(x))). tanh(Δ/2) is
    e/(e + 2) with e = expm1(Δ), three times as fast as torch's own; beyond 80 it is 1 to every digit.
    """
    growth = delta.clamp(max=80.0).expm1_()
    there = (x + delta).sigmoid_()
    step = torch.addcmul(value, there, torch.sub(x, value, alpha=2))
    return step.mul_(growth.div_(growth + 2.0)).addcmul_(there, delta)


def wide_difference(value: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The difference of a function without a closed form, taken in float64 where the device has it."""

    def difference(
        x: Float[Tensor, "_ f"], _: Float[Tensor, "_ f"], delta: Float[Tensor, "m f"]
    ) -> Float[Tensor, "m f"]:
        wide = x if x.device.type == "mps" else x.double()
        return (value(wide + delta) - value(wide)).to(x.dtype)

    return difference


SILU = Activation("silu", F.silu, silu_difference)


def carry_gated(gate_up: Carried, activation: Activation) -> Carried:
    """act(gate)·up, gate and up side by side: act(g')u' - act(g)u = (act(g') - act(g))·u' + act(g)·Δu."""
    both_gates, both_ups = gate_up.rows.chunk(2, dim=-1)
    out = torch.empty_like(both_gates, memory_format=torch.contiguous_format)
    (gate, gate_delta), (up, up_delta), (here, delta) = map(gate_up.split, (both_gates, both_ups, out))
    activated = activation.value(gate)
    torch.mul(activated, up, out=here)
    if len(gate_up.origins):
        gate, up, activated = map(gate_up.origins.take, (gate, up, activated))
        torch.mul(activation.difference(gate, activated, gate_delta), up + up_delta, out=delta)
        delta.addcmul_(activated, up_delta)
    return gate_up.with_rows(out)
