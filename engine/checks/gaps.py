"""How far two accounts of a layer lie apart, in units of what is allowed.

Axes as in ``account``.
"""

from collections.abc import Iterator
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from engine.checks.account import Account, Pair
from engine.checks.tolerances import CHECKED, NARROW, ROPE_TOLERANCE, Tolerance
from engine.model.decoder import Rope


def account_gaps(ours: Account, theirs: Account, *, precision: torch.dtype) -> Iterator[tuple[str, float]]:
    """What was compared, in the order in which a layer computes it, and its gap: above 1 it is too far.

    Where transformers' numbers are not finite there is nothing to compare with.
    """
    most = precision in NARROW
    near = partial(_gap, tolerance=CHECKED[precision], most=most)
    yield "the streams that enter", near(ours.entering, theirs.entering)
    for what, one, other in _inside(ours, theirs):
        scale = other.baseline.norm(dim=-1).amax().expand(len(other.baseline))
        yield what, near(one.baseline, other.baseline, scale)
        yield f"the changes by a mask of {what}", near(one.delta, other.delta, scale)
    rows = ours.leaving[-len(theirs.leaving) :], theirs.leaving[-len(ours.leaving) :]
    yield "the streams that leave", near(*rows, most=most or theirs.is_routed)
    if not theirs.is_routed:  # a token between two experts may go to either
        one, other, scale = ours.update, theirs.update, theirs.leaving[-1:].norm(dim=-1)
        yield "the updates", near(one.baseline, other.baseline, scale)
        yield "the changes by a mask of the updates", near(one.delta, other.delta, scale)


def _inside(ours: Account, theirs: Account) -> Iterator[tuple[str, Pair, Pair]]:
    """What both accounts tell of the attention."""
    both = ("the heads' outputs", ours.z, theirs.z), ("the vectors that attention adds", ours.attn, theirs.attn)
    for what, one, other in both:
        if one is not None and other is not None:
            yield what, one, other


def logits_gap(ours: Float[Tensor, " c"], theirs: Float[Tensor, " c"], *, precision: torch.dtype) -> float:
    """The same of logits, all of them as one vector."""
    return _gap(ours[None], theirs[None], tolerance=CHECKED[precision], most=False)


def rope_gap(ours: Rope, theirs: Rope, num_positions: int) -> float:
    """The largest difference of two rotary tables of that length: frequencies that differ in the last digit alone turn
    a far position by a thousandth.
    """
    pairs = zip(ours(num_positions), theirs(num_positions), strict=True)
    return max(float((one.float() - other.float()).abs().max()) for one, other in pairs) / ROPE_TOLERANCE


def _gap(
    ours: Float[Tensor, "n c"],
    theirs: Float[Tensor, "n c"],
    scale: Float[Tensor, " n"] | None = None,
    *,
    tolerance: Tolerance,
    most: bool,
) -> float:
    """The largest gap of any vector; with ``most`` that of the better half of them. What differences were taken of has
    the length ``scale``.
    """
    size = theirs.norm(dim=-1)
    allowed = tolerance.relative * size + tolerance.resolution * (size if scale is None else scale)
    gap = (ours - theirs).norm(dim=-1)
    gaps = torch.where(gap == 0, 0.0, gap / allowed).nan_to_num(nan=torch.inf, posinf=torch.inf)
    told = theirs.isfinite().all(dim=-1)
    gaps = gaps[told]
    if not len(gaps):
        return 0.0
    return float(gaps.median() if most else gaps.max())
