"""The MLP of a layer, in the forms that families give it; each maps normed rows to what is added to the stream.

Axes: ``n`` row, ``e`` residual channel, ``f`` MLP channel.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from engine.kernels.activations import Activation, Gate, carry_activation
from engine.kernels.difference import Carried
from engine.kernels.experts import Router, carry_experts, route
from engine.kernels.projection import Projection


@dataclass(frozen=True)
class GatedMLP:
    """down(act(gate(x)) · up(x)) (Shazeer 2020, arXiv 2002.05202)."""

    gate_up: Projection
    down: Projection
    gate: Gate

    def carry(self, x: Carried) -> Carried:
        return self.down.carry(self.gate.carry(self.gate_up.carry(x)))

    def projections(self) -> Iterator[Projection]:
        yield from (self.gate_up, self.down)

    @property
    def name(self) -> str:
        """Names the function, for a fingerprint."""
        return self.gate.activation.name


@dataclass(frozen=True)
class PlainMLP:
    """down(act(up(x)))."""

    up: Projection
    down: Projection
    activation: Activation

    def carry(self, x: Carried) -> Carried:
        return self.down.carry(carry_activation(self.up.carry(x), self.activation))

    def projections(self) -> Iterator[Projection]:
        yield from (self.up, self.down)

    @property
    def name(self) -> str:
        """Names the function, for a fingerprint."""
        return f"plain {self.activation.name}"


@dataclass(frozen=True)
class Experts:
    """Gated MLPs, of which a router chooses a few for every row. It wants all rows at once, to read an expert once."""

    router: Router
    experts: Sequence[GatedMLP]

    def carry(self, x: Carried) -> Carried:
        return carry_experts(x, route(self.router, x), lambda index, part: self.experts[index].carry(part))

    def projections(self) -> Iterator[Projection]:
        yield self.router.logits
        for expert in self.experts:
            yield from expert.projections()

    @property
    def name(self) -> str:
        """Names the function, for a fingerprint."""
        router = self.router
        return f"{router.top_k} of {len(self.experts)} {self.experts[0].name} {router.renormalised}"


MLP = GatedMLP | PlainMLP | Experts
