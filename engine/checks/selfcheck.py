"""The self-check: the engine's account of a short probe beside that of transformers, layer by layer.

What is held against each other: the stream that enters and leaves each layer (so that in + attention + MLP is out),
head outputs and what the projection makes of them, how both change when a token is hidden, and the logits. In the
engine's own patterns the hidden token's weight has to be exactly 0.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from engine.checks.account import Account, Probing, engine_accounts, engine_logits, first_account, leaks
from engine.checks.gaps import account_gaps, is_settled, logits_gap, rope_gap
from engine.checks.oracles import Oracle, oracle_of
from engine.errors import CheckError
from engine.kernels.masks import visible_keys
from engine.kernels.products import exact_products
from engine.kernels.projection import widened_products
from engine.model.decoder import Decoder
from engine.model.devices import host_by_default, memory_errors, trim_memory
from engine.model.sources import quiet
from engine.model.view import View
from engine.sweeps.readout import Limits

FAR = 1 << 13
"""Positions over which rotary tables are compared."""
FARTHEST = 1 << 17
"""The position up to which it is compared what a query sees."""
KERNELS = {
    "short": Limits(),
    "longer": Limits(joint_cells=0),
    "long": Limits(joint_cells=0, masked_variants=0),
}
"""Bounds that choose the kernels by which prompts are measured, by the prompts' length."""


@dataclass(frozen=True)
class Finding:
    """What is wrong, and in which layer, if it is one."""

    layer: int | None
    what: str


def self_check(view: View, model: nn.Module | None) -> bool:
    """Prove on a probe that the engine computes what transformers computes; whether there was anything to hold it
    against. Raises ``CheckError`` where it does not.

    ``model`` is the transformers model in memory of which ``view`` is one; without it, that of the files which the view
    was read from. Costs about a pass and a forward of a few tokens, and of large models less.
    """
    probing = Probing.of(view)
    oracle = oracle_of(view, model, probing)
    if oracle is None:
        return False
    with memory_errors(view.device), host_by_default(), exact_products(view.device), quiet(), torch.no_grad():
        found = _finding(view, oracle, probing)
    _tidy(view)
    if found is not None:
        place = "outside of the layers" if found.layer is None else f"in layer {found.layer}"
        raise CheckError(
            f"the self-check of {view.name!r:.80} failed {place}: {found.what}; its numbers cannot be trusted on "
            f"{view.device}; report this with your versions and the model, or go on all the same with --no-check "
            "(check=False), which the results will say"
        )
    return True


def _finding(view: View, oracle: Oracle, probing: Probing) -> Finding | None:
    """The first disagreement, if there is one.

    An oracle that computes wider than the engine does would excuse any fault by the engine's rounding; it is held
    against the engine's layers with products as wide as its own, and the narrow ones against it in the first layer.
    """
    is_wider = oracle.own != oracle.precision
    with widened_products() if is_wider else nullcontext():
        ours, residual = engine_accounts(view, probing, oracle.num_layers)
    leak, by_kernel = _alone(view, ours, probing)
    _tidy(view)
    if leak is not None:
        return Finding(leak, "a hidden token keeps some weight in the pattern")
    if (rope := _wrong_rope(view, oracle)) is not None:
        return rope
    theirs, expected = oracle.tell(probing, [account.entering for account in ours])
    for index, (one, other, before) in enumerate(zip(ours, theirs, (None, *theirs[:-1]), strict=True)):
        if (what := _differing(one, other, before, oracle.own)) is not None:
            return Finding(index, f"{what} differ from transformers'")
    for length, account in zip(KERNELS, by_kernel, strict=False):
        if (what := _differing(account, theirs[0], None, oracle.precision)) is not None:
            return Finding(0, f"{what}, by the kernel of {length} prompts, differ from transformers'")
    if (far := _wrong_sight(view, theirs)) is not None:
        return far
    with widened_products() if is_wider else nullcontext():
        found = engine_logits(view, residual, len(expected))
    if is_settled(theirs[-1]) and logits_gap(found, expected, precision=oracle.own) > 1:
        return Finding(None, "the logits differ from transformers'")
    return None


def _differing(ours: Account, theirs: Account, before: Account | None, precision: torch.dtype) -> str | None:
    """What lies too far apart, if something does."""
    return next((what for what, gap in account_gaps(ours, theirs, before, precision=precision) if gap > 1), None)


def _tidy(view: View) -> None:
    """Of a model that is read layer by layer, give back what the last one took."""
    if view.is_streamed:
        trim_memory()


def _wrong_rope(view: View, oracle: Oracle) -> Finding | None:
    """A rope that is not transformers', near or far: scaled frequencies hardly show in a short probe."""
    if not isinstance(view, Decoder):
        return None
    far = min(view.max_positions, FAR)
    for name, theirs in oracle.ropes().items():
        if max(rope_gap(view.ropes[name], theirs, count) for count in (1, far)) > 1:
            return Finding(None, f"the rotary tables ({name}) differ from transformers' at some of {far:,} positions")
    return None


def _alone(view: View, accounts: Sequence[Account], probing: Probing) -> tuple[int | None, list[Account]]:
    """What needs no transformers: the first layer that leaks, and accounts of the first layer by every kernel.

    Of layers in files only the first is asked for again, and read once.
    """
    if not isinstance(view, Decoder):
        return None, []
    again = replace(view, layers=(view.layers[0],) * 2, sights=view.sights[:1] * 2) if view.is_streamed else view
    leak = _leak(again, accounts[:1] if view.is_streamed else accounts, probing)
    return leak, [first_account(again, probing, limits) for limits in KERNELS.values()]


def _wrong_sight(view: View, accounts: Sequence[Account]) -> Finding | None:
    """A layer whose farthest query sees other keys than transformers lets it see: windows are longer than a probe."""
    if not isinstance(view, Decoder):
        return None  # what its layers hide is asked for with every prompt
    far, known = min(view.max_positions, FARTHEST) - 1, set[tuple[Any, ...]]()
    for index, (account, sight) in enumerate(zip(accounts, view.sights, strict=False)):
        windows = [sight.window] if view.is_streamed else [sight.window, view.layers[index].attention.window]
        for window in windows:
            if account.sees is None or (account.sees, window) in known:
                continue
            known.add((account.sees, window))
            if not torch.equal(account.sees(far), visible_keys(torch.tensor([far]), far + 1, window)[0]):
                return Finding(index, f"the keys that a query at position {far:,} sees differ from transformers'")
    return None


def _leak(decoder: Decoder, accounts: Sequence[Account], probing: Probing) -> int | None:
    """The first layer whose pattern leaves a hidden token some weight."""
    kept = leaks(decoder, probing, accounts)
    found = (torch.stack([weight.cpu() for weight in kept]) > 0).nonzero().flatten().tolist()
    return found[0] if found else None
