"""How far the engine and transformers may lie apart before something is wrong."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tolerance:
    """``relative`` to what is compared, plus ``resolution`` of the vector that it was subtracted from.

    Whoever subtracts two vectors b and m resolves no difference below ``resolution`` · |b|.
    """

    relative: float
    resolution: float
    reason: str


TOLERANCES = {
    torch.float64: Tolerance(1e-4, 1e-6, "transformers computes its norms in float32 even in a float64 layer"),
    torch.float32: Tolerance(1e-2, 1e-5, "engine and transformers round the stream that enters the layer differently"),
    torch.bfloat16: Tolerance(0.3, 1e-2, "products in bfloat16 carry 8 bits"),
    torch.float16: Tolerance(0.05, 2e-3, "products in float16 carry 11 bits"),
}
"""Of a cell of a table."""

CHECKED = {
    torch.float64: Tolerance(1e-4, 1e-6, "transformers computes its norms in float32 even in a float64 layer"),
    torch.float32: Tolerance(1e-3, 1e-5, "both sum up in another order; peaked patterns enlarge what that rounds"),
    torch.bfloat16: Tolerance(0.5, 5e-2, "a score of 50 is known to 0.2, so its share of a pattern to a fifth"),
    torch.float16: Tolerance(0.1, 1e-2, "a score of 50 is known to 0.03"),
}
"""Of the self-check, where both compute a layer from the same stream. In the narrow dtypes most vectors must agree,
not all: a head whose scores lie close together may turn to another key."""

ROPE_TOLERANCE = 1e-2
"""Of a cosine or sine."""
UNSETTLED = 1e-3
"""Share of the largest logit of a router below which rounding may choose another expert."""
NARROW = (torch.bfloat16, torch.float16)
