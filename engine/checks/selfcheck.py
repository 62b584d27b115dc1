"""The self-check: the engine's account of a short probe beside that of transformers, layer by layer.

What is held against each other: the stream that enters and leaves each layer (so that in + attention + MLP is out),
head outputs and what the projection makes of them, how both change when a token is hidden, and the logits. In the
engine's own patterns the hidden token's weight has to be exactly 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from engine.checks.account import Account, Probing, engine_accounts, engine_logits, leaks
from engine.checks.gaps import account_gaps, logits_gap, rope_gap
from engine.checks.oracles import Oracle, oracle_of
from engine.errors import CheckError
from engine.kernels.products import exact_products
from engine.model.decoder import Decoder
from engine.model.devices import host_by_default, memory_errors, trim_memory
from engine.model.sources import quiet
from engine.model.view import View

FAR = 1 << 13
"""Positions over which rotary tables are compared."""


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
    """The first disagreement, if there is one."""
    ours, residual = engine_accounts(view, probing, oracle.num_layers)
    leak = _leak(view, ours, probing)
    _tidy(view)
    if leak is not None:
        return Finding(leak, "a hidden token keeps some weight in the pattern")
    if (rope := _wrong_rope(view, oracle)) is not None:
        return rope
    theirs, expected = oracle.tell(probing, [account.entering for account in ours])
    for index, pair in enumerate(zip(ours, theirs, strict=True)):
        for what, gap in account_gaps(*pair, precision=oracle.precision):
            if gap > 1:
                return Finding(index, f"{what} differ from transformers'")
    if logits_gap(engine_logits(view, residual, len(expected)), expected, precision=oracle.precision) > 1:
        return Finding(None, "the logits differ from transformers'")
    return None


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


def _leak(view: View, accounts: Sequence[Account], probing: Probing) -> int | None:
    """The first layer whose pattern leaves the hidden token some weight. Of weights in files the first layer tells."""
    if not isinstance(view, Decoder):
        return None
    kept = leaks(view, probing, accounts[:1] if view.is_streamed else accounts)
    found = (torch.stack([weight.cpu() for weight in kept]) > 0).nonzero().flatten().tolist()
    return found[0] if found else None
