"""Which keys transformers lets a query see at any distance: the rule behind a mask, and not the few cells of one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from engine.checks.account import Sees
from engine.model.borrowing import EAGER
from engine.sharing import Shared

TOLD = "_mask_impact_rule"
"""The attribute of a mask that holds its rule."""


@contextmanager
def _telling() -> Iterator[None]:
    """The mask function of eager attention puts the rule that it was given on the mask that it makes."""
    from transformers.masking_utils import AttentionMaskInterface

    plain = AttentionMaskInterface._global_mapping[EAGER]

    def telling(*args: Any, **kwargs: Any) -> Any:
        mask = plain(*args, **kwargs)
        if isinstance(mask, Tensor):
            setattr(mask, TOLD, _sees(kwargs["mask_function"]))
        return mask

    AttentionMaskInterface.register(EAGER, telling)
    try:
        yield
    finally:
        AttentionMaskInterface.register(EAGER, plain)


telling_masks = Shared(_telling)
"""While it lasts, masks that transformers makes know their rule."""


def told_by(mask: Tensor) -> Sees | None:
    """The rule of a mask, the same one whoever asks; None where transformers did not make the mask."""
    return getattr(mask, TOLD, None)


def _sees(rule: Callable[..., Tensor]) -> Sees:
    def sees(query: int) -> Bool[Tensor, " k"]:
        first = torch.tensor(0)  # prompt and head
        return rule(first, first, torch.tensor(query), torch.arange(query + 1)).expand(query + 1)

    return sees
