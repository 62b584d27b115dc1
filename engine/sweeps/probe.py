"""What is done to hidden keys, and what is read of each layer."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from engine.questions.heads import HeadChoice
from engine.questions.question import SITES, Intervention, Question


@dataclass(frozen=True, kw_only=True)
class Probe:
    """The part of a question that a pass over a decoder needs to know; the default is the mission's."""

    intervention: Intervention = "mask"
    heads: HeadChoice | None = None
    """The heads that are cut; None is all of them."""
    sites: tuple[str, ...] = ()
    """What is read beside Full, Attn and the heads."""
    masses: bool = False
    """Whether the share of the baseline's attention that the hidden keys had is read."""
    relative: bool = False
    """Whether distances are also given over the norm of the baseline vector."""

    @property
    def is_plain(self) -> bool:
        """Whether every head is masked and nothing but distances is asked for."""
        return self.intervention == "mask" and self.heads is None and not self.masses

    def cut_heads(self, num_layers: int, num_heads: int) -> Bool[np.ndarray, "l h"] | None:
        """True where a head is cut; None where all are."""
        return None if self.heads is None else self.heads.grid(num_layers, num_heads)

    def names(self, num_heads: int) -> list[str]:
        """The variants of a layer in table order: Full, Attn, Head_0, Head_1, ... and the others."""
        heads = [f"Head_{head}" for head in range(num_heads)]
        more = {"MLP": ["MLP"], "Resid": ["Resid"], "Result_h": [f"Result_{head}" for head in range(num_heads)]}
        return ["Full", "Attn", *heads, *(name for site in SITES if site in self.sites for name in more[site])]


def probe_of(question: Question) -> Probe:
    """What a question asks of the passes."""
    return Probe(
        intervention=question.intervention,
        heads=question.heads,
        sites=question.sites,
        masses="attention_mass" in question.columns,
        relative="relative_l2" in question.columns,
    )
