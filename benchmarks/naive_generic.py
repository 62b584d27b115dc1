"""The naive way for any model of transformers' attention interface: a forward for every layer and token, subtracted.

The model computes everything by itself but its attention, which is written down here as plainly as it can be. What
attention adds to the stream is read at a submodule that the caller names. Nothing of the engine is used.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

ATTENTION = "plain"


class PlainAttention:
    """Attention from its definition. In call number ``layer`` of a forward, nobody attends to ``hidden``."""

    def __init__(self) -> None:
        self.layer: int | None = None
        self.hidden: int | None = None
        self.z: list[Float[Tensor, "h s d"]] = []

    def cut(self, layer: int | None, hidden: int | None) -> None:
        """What to hide in the next forward."""
        self.layer, self.hidden, self.z = layer, hidden, []

    def __call__(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **more: Any
    ) -> tuple[Tensor, None]:
        group = query.shape[1] // key.shape[1]
        k, v = key[0].repeat_interleave(group, 0), value[0].repeat_interleave(group, 0)
        scaling = more.get("scaling")
        scores = query[0] @ k.mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        if more.get("softcap") is not None:
            scores = more["softcap"] * torch.tanh(scores / more["softcap"])
        hidden = (attention_mask[0] != 0).expand_as(scores).clone()
        if len(self.z) == self.layer:
            hidden[:, :, self.hidden] = True
        pattern = _pattern(scores.masked_fill(hidden, -torch.inf), more.get("s_aux"))
        self.z.append(pattern @ v)
        return self.z[-1].transpose(0, 1)[None], None


def _pattern(scores: Float[Tensor, "h s k"], sinks: Tensor | None) -> Float[Tensor, "h s k"]:
    """The softmax; a query that sees nothing attends to nothing."""
    if sinks is None:
        return scores.softmax(-1).nan_to_num(0.0)
    beside = sinks[:, None, None].expand(-1, scores.shape[1], 1).to(scores.dtype)
    return torch.cat((scores, beside), -1).softmax(-1)[..., :-1]


@contextmanager
def plainly(model: Any) -> Iterator[PlainAttention]:
    """While it lasts, the model calls a plain attention."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    attention, before = PlainAttention(), model.config._attn_implementation
    AttentionInterface.register(ATTENTION, attention)
    AttentionMaskInterface.register(ATTENTION, eager_mask)
    model.set_attn_implementation(ATTENTION)
    try:
        yield attention
    finally:
        model.set_attn_implementation(before)


@contextmanager
def _kept(layers: list[Any], added: str) -> Iterator[dict[str, list[Tensor]]]:
    """What enters and leaves the layers, and what submodule ``added`` of each gives."""
    kept: dict[str, list[Tensor]] = {"before": [], "after": [], "added": []}

    def first(x: Any) -> Tensor:
        return (x[0] if isinstance(x, tuple) else x).clone()

    def layer_called(_: Any, args: Any, kwargs: Any, out: Any) -> None:
        kept["before"].append(first(args or kwargs["hidden_states"]))
        kept["after"].append(first(out))

    hooks = [layer.register_forward_hook(layer_called, with_kwargs=True) for layer in layers]
    parts = [layer.get_submodule(added) for layer in layers]
    hooks += [part.register_forward_hook(lambda _, __, out: kept["added"].append(first(out))) for part in parts]
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()


@torch.inference_mode()
def naive_distances(
    model: Any, token_ids: list[int], *, layers: str, added: str, factor: float = 1.0
) -> Float[np.ndarray, "l v site 3"]:
    """L2, 1 - cos and the size of the baseline, at the last position, of Full, Attn and the heads.

    ``layers`` names the model's list of layers, ``added`` the submodule of a layer whose output, times ``factor``, is
    what attention adds.
    """
    where = (list(model.get_submodule(layers)), added, factor)
    with plainly(model) as attention:
        baseline = _sites(model, token_ids, attention, None, None, *where)
        cells = []
        for layer, whole in enumerate(baseline):
            masked = [_sites(model, token_ids, attention, layer, p, *where)[layer] for p in range(len(token_ids))]
            cells.append([[_distances(*pair) for pair in zip(whole, each, strict=True)] for each in masked])
    return np.array(cells)


def _sites(
    model: Any, ids: list[int], attention: PlainAttention, layer: int | None, hidden: int | None, *where: Any
) -> list[list[Tensor]]:
    """Full, Attn and the heads of every layer, at the last position."""
    layers, added, factor = where
    attention.cut(layer, hidden)
    with _kept(layers, added) as kept:
        model(torch.tensor([ids]), use_cache=False)
    calls = zip(kept["before"], kept["after"], kept["added"], attention.z, strict=True)
    return [[(y - x)[0, -1], a.reshape(x.shape)[0, -1] * factor, *z[:, -1]] for x, y, a, z in calls]


def _distances(b: Tensor, m: Tensor) -> tuple[float, float, float]:
    b, m = b.double(), m.double()
    return float((m - b).norm()), float(1 - b @ m / (b.norm() * m.norm())), float(b.norm())
