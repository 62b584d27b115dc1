"""Norms of rows that carry differences: a norm of x + Δ less that of x, without ever subtracting the two.

Axes: ``n`` row, ``h`` head, ``c`` channel.
"""

from dataclasses import dataclass, replace

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from engine.kernels.difference import Carried


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
        change = growth.mul_(both).div_(scale + moved_scale).mul_(both)  # in this order nothing leaves float32
        shift = torch.where(moved_scale > scale, moved, origin).mul_(change)
        torch.minimum(scale, moved_scale, out=moved_scale)
        out = x.rows * scales
        x.split(out)[1].sub_(shift, alpha=1 / x.rows.shape[-1])
        return x.with_rows(out.mul_(self.weight))

    def _inverse_rms(self, x: Float[Tensor, "... c"]) -> Float[Tensor, "... 1"]:
        """1/√(mean(x²) + eps); NaN, and not 0 or a few digits, where the squares leave what the dtype can hold."""
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = torch.addcmul(self.eps, norm, norm, value=1 / x.shape[-1]).rsqrt_()
        tiny = torch.finfo(x.dtype).tiny
        return scale.masked_fill_(scale != scale.clamp(tiny, tiny**-0.5), torch.nan)

    @property
    def weights(self) -> tuple[Tensor, ...]:
        return (self.weight,)

    @property
    def epsilons(self) -> tuple[Float[Tensor, ""], ...]:
        return (self.eps,)

    def to(self, kind: torch.dtype | torch.device) -> "RMSNorm":
        """The same norm in another precision, or on another device."""
        return RMSNorm(self.weight.to(kind), self.eps.to(kind))


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """Layer norm over the last axis (Ba et al. 2016, arXiv 1607.06450): an RMS norm of what is left of a row when its
    mean is taken off, plus a bias. Taking off the mean is linear, so differences pass through it as rows do.
    """

    rms: RMSNorm
    bias: Float[Tensor, " c"] | None = None

    def __call__(self, x: Float[Tensor, "... c"]) -> Float[Tensor, "... c"]:
        normed = self.rms(_centred(x))
        return normed if self.bias is None else normed.add_(self.bias)

    def carry(self, x: Carried) -> Carried:
        out = self.rms.carry(x.with_rows(_centred(x.rows)))
        if self.bias is not None:
            out.baseline.add_(self.bias)
        return out

    @property
    def weights(self) -> tuple[Tensor, ...]:
        return self.rms.weights if self.bias is None else (*self.rms.weights, self.bias)

    @property
    def epsilons(self) -> tuple[Float[Tensor, ""], ...]:
        return self.rms.epsilons

    def to(self, kind: torch.dtype | torch.device) -> "LayerNorm":
        """The same norm in another precision, or on another device."""
        return LayerNorm(self.rms.to(kind), None if self.bias is None else self.bias.to(kind))


@dataclass(frozen=True, slots=True)
class WholeNorms:
    """One norm over the channels of all query heads together, and one over those of all key heads."""

    query: RMSNorm
    key: RMSNorm
    num_heads: int

    def __call__(self, x: Float[Tensor, "n qk d"]) -> Float[Tensor, "n qk d"]:
        return torch.cat([_by_head(norm(_flat(part)), part) for norm, part in self._parts(x)], dim=1)

    def carry(self, x: Carried) -> Carried:
        parts = [(norm.carry(x.with_rows(_flat(part))), part) for norm, part in self._parts(x.rows)]
        return x.with_rows(torch.cat([_by_head(normed.rows, part) for normed, part in parts], dim=1))

    def _parts(self, x: Float[Tensor, "n qk d"]) -> list[tuple[RMSNorm, Float[Tensor, "n h d"]]]:
        q, k = x.tensor_split((self.num_heads,), dim=1)
        return [(self.query, q), (self.key, k)]

    @property
    def weights(self) -> tuple[Tensor, ...]:
        return (*self.query.weights, *self.key.weights)

    @property
    def epsilons(self) -> tuple[Float[Tensor, ""], ...]:
        return (*self.query.epsilons, *self.key.epsilons)

    def to(self, kind: torch.dtype | torch.device) -> "WholeNorms":
        """The same norms in another precision, or on another device."""
        return replace(self, query=self.query.to(kind), key=self.key.to(kind))


Norm = RMSNorm | LayerNorm | WholeNorms
"""Norms rows, and carries differences through; ``weights`` and ``epsilons`` are all that it is made of."""


def _centred(x: Float[Tensor, "... c"]) -> Float[Tensor, "... c"]:
    return x - x.mean(-1, keepdim=True)


def _flat(heads: Float[Tensor, "n h d"]) -> Float[Tensor, "n hd"]:
    return rearrange(heads, "n h d -> n (h d)")


def _by_head(rows: Float[Tensor, "n hd"], like: Float[Tensor, "n h d"]) -> Float[Tensor, "n h d"]:
    return rearrange(rows, "n (h d) -> n h d", h=like.shape[1])
