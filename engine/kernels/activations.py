"""Activations and gates of rows that carry differences.

Axes: ``n`` row, ``m`` difference row, ``f`` MLP channel.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from engine.kernels.difference import Carried


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


@dataclass(frozen=True, slots=True)
class Gate:
    """act(gate)·up of gate and up laid side by side, or in turns. ``up`` is what is done to the other half, if anything
    is.
    """

    activation: Activation
    up: Activation | None = None
    in_turns: bool = False

    def halves(self, rows: Float[Tensor, "n gf"]) -> tuple[Float[Tensor, "n f"], Float[Tensor, "n f"]]:
        """The gates and the others of rows."""
        pattern = "n (f two) -> two n f" if self.in_turns else "n (two f) -> two n f"
        gates, ups = rearrange(rows, pattern, two=2)
        return gates, ups

    def carry(self, x: Carried) -> Carried:
        """act(g')u' - act(g)u = (act(g') - act(g))·u' + act(g)·Δu."""
        both_gates, both_ups = self.halves(x.rows)
        out = torch.empty_like(both_gates, memory_format=torch.contiguous_format)
        (gate, gate_delta), (up, up_delta), (here, delta) = map(x.split, (both_gates, both_ups, out))
        activated = self.activation.value(gate)
        up_value = up if self.up is None else self.up.value(up)
        torch.mul(activated, up_value, out=here)
        if len(x.origins):
            gate, up, activated, up_value = map(x.origins.take, (gate, up, activated, up_value))
            moved = up_delta if self.up is None else self.up.difference(up, up_value, up_delta)
            torch.mul(self.activation.difference(gate, activated, gate_delta), up_value + moved, out=delta)
            delta.addcmul_(activated, moved)
        return x.with_rows(out)


def carry_activation(x: Carried, activation: Activation) -> Carried:
    """act(x) and act(x + Δ) - act(x)."""
    baseline, delta = x.split(x.rows)
    value = activation.value(baseline)
    if not len(x.origins):
        return x.with_rows(value)
    here, activated = x.origins.take(baseline), x.origins.take(value)
    return x.with_rows(torch.cat((value, activation.difference(here, activated, delta))))
