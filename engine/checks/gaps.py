"""How far two accounts of a layer lie apart, in units of what is allowed.

Axes as in ``account``.
"""

from collections.abc import Iterator
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from engine.checks.account import Account, Pair
from engine.checks.tolerances import CHECKED, NARROW, ROPE_TOLERANCE, Tolerance
from engine.model.decoder import Rope


def account_gaps(
    ours: Account, theirs: Account, before: Account | None, *, precision: torch.dtype
) -> Iterator[tuple[str, float]]:
    """What was compared, in the order in which a layer computes it, and its gap: above 1 it is too far.

    ``before`` is transformers' account of the layer before, if there is one. Where its numbers are not finite there is
    nothing to compare with, nor where a token may have gone to one expert as well as to another.
    """
    most = precision in NARROW
    near = partial(_gap, tolerance=CHECKED[precision], most=most)
    entered, unknown = _entered(before, len(theirs.entering))
    yield "the streams that enter", near(ours.entering[entered], theirs.entering[entered], most=most or unknown)
    for what, one, other in _inside(ours, theirs):
        scale = other.baseline.norm(dim=-1).amax().expand(len(other.baseline))
        yield what, near(one.baseline, other.baseline, scale)
        yield f"the changes by a mask of {what}", near(one.delta, other.delta, scale)
    last, ours_left, left = -len(theirs.leaving), ours.leaving, theirs.leaving[-len(ours.leaving) :]
    baseline, changed = _settled(theirs, len(left))
    yield "the streams that leave", near(ours_left[last:][baseline], left[baseline], most=most or _is_unknown(theirs))
    one, other, scale = ours.update, theirs.update, theirs.leaving[-1:].norm(dim=-1)
    if baseline[-1]:
        yield "the updates", near(one.baseline, other.baseline, scale)
    if changed:
        yield "the changes by a mask of the updates", near(one.delta, other.delta, scale)


def is_settled(account: Account) -> bool:
    """Whether the query's own experts are beyond doubt, if it has any."""
    return account.settled is None or bool(account.settled[0, -1])


def _entered(before: Account | None, count: int) -> tuple[Bool[Tensor, " s"], bool]:
    """The positions that left the layer before beyond doubt, and whether nobody says which those are."""
    if before is None:
        return torch.ones(count, dtype=torch.bool), False
    return (torch.ones(count, dtype=torch.bool) if before.settled is None else before.settled[0]), _is_unknown(before)


def _is_unknown(theirs: Account) -> bool:
    """Whether a token between two experts may have gone to either, and nobody says which token that is."""
    return theirs.is_routed and theirs.settled is None


def _settled(theirs: Account, count: int) -> tuple[Bool[Tensor, " s"], bool]:
    """The last ``count`` positions whose experts are beyond doubt, and whether the query's are so in both copies."""
    if theirs.settled is None:
        return torch.ones(count, dtype=torch.bool), not theirs.is_routed
    return theirs.settled[0, -count:], bool(theirs.settled[:, -1].all())


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
