"""What a pass shows of each layer, and how much it may hold at once.

Axes: ``b`` reading, ``m`` difference row, ``r`` row, ``c`` channel, ``e`` residual channel, ``h`` head.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Site:
    """What is read: ``num_vectors`` vectors side by side, their baseline per prompt and difference per variant."""

    baseline: Float[Tensor, "b c"]
    delta: Float[Tensor, "m c"]
    num_vectors: int = 1
    left: Float[Tensor, "m c"] | None = None
    """What baseline and difference add up to, where little of it may be left; infinite where it is not known."""


@dataclass(frozen=True, slots=True)
class Readout:
    """What one layer shows: the stream that leaves it and, where the layer is measured, its sites Full, Attn, heads and
    those that were asked for.

    ``residual`` has all rows, or only the queries' rows when no later layer follows.
    """

    layer: int
    residual: Float[Tensor, "r e"]
    sites: tuple[Site, ...] = ()
    masses: Float[Tensor, "m h"] | None = None
    """The share of the baseline's pattern that each variant hides, head by head, if it was asked for."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what a pass holds at once; they change its memory and its use of caches, not its numbers."""

    rows: int = 256
    """Rows that go through a projection or an MLP together."""
    pattern_cells: int = 1 << 18
    """Cells of the variants' patterns (prompt x variant x head x key) made together."""
    joint_cells: int = 1 << 17
    """Cells of all patterns (row x head x key) up to which one prompt and its masked copies share one softmax."""
    masked_variants: int = 64
    """Single-token variants up to which each gets a mask and a softmax of its own; more share their sums."""
    buffered_cells: int = 1 << 20
    """Activations that become distances together: a small prompt needs one round, a long one stays in the caches."""
