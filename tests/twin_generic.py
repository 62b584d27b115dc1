"""The naive way for any model of transformers' attention interface: a forward for every layer and token, subtracted.

The model computes everything by itself but the attention function, which is written down plainly here. What attention
adds to the stream is read at a submodule that a case names. Nothing of the engine is used.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

ATTENTION = "plain-twin"


@dataclass
class Plan:
    """In call number ``layer`` of a forward nobody attends to ``hidden``."""

    layer: int | None = None
    hidden: tuple[int, ...] = ()
    calls: int = 0
    z: list[Tensor] | None = None


PLAN = Plan()


def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **more: Any) -> Any:
    """Attention from its definition, the mask a real -inf."""
    group = query.shape[1] // key.shape[1]
    k, v = key[0].repeat_interleave(group, 0), value[0].repeat_interleave(group, 0)
    scaling = more.get("scaling")
    scores = query[0] @ k.mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if more.get("softcap") is not None:
        scores = more["softcap"] * torch.tanh(scores / more["softcap"])
    hidden = attention_mask[0] != 0
    hidden = hidden.expand_as(scores).clone()
    if PLAN.calls == PLAN.layer:
        hidden[:, :, list(PLAN.hidden)] = True
    PLAN.calls += 1
    scores = scores.masked_fill(hidden, -torch.inf)
    if more.get("s_aux") is not None:
        sinks = more["s_aux"][:, None, None].expand(-1, scores.shape[1], 1).to(scores.dtype)
        pattern = torch.cat((scores, sinks), -1).softmax(-1)[..., :-1]
    else:
        pattern = scores.softmax(-1).nan_to_num(0.0)
    z = pattern @ v
    PLAN.z.append(z)
    return z.transpose(0, 1)[None], None


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, eager_mask)


@contextmanager
def reading(layers: list[Any], added: str, kept: dict[str, list[Tensor]]) -> Iterator[None]:
    """Keep what enters and leaves the layers, and what submodule ``added`` of each gives."""

    def first(x: Any) -> Tensor:
        return (x[0] if isinstance(x, tuple) else x).clone()

    def note(_: Any, args: Any, kwargs: Any, out: Any) -> None:
        kept["before"].append(first(args if args else kwargs["hidden_states"]))
        kept["after"].append(first(out))

    hooks = [layer.register_forward_hook(note, with_kwargs=True) for layer in layers]
    hooks += [
        layer.get_submodule(added).register_forward_hook(lambda _, __, out: kept["added"].append(first(out)))
        for layer in layers
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.inference_mode()
def sites(model: Any, ids: list[int], *, layers: str, added: str, factor: float, plan: Plan) -> list[list[Tensor]]:
    """Full, Attn and the heads at every position of every layer: ``[layer][site]``, site ``s c``."""
    global PLAN
    PLAN = plan
    plan.calls, plan.z = 0, []
    kept: dict[str, list[Tensor]] = {"before": [], "after": [], "added": []}
    model.set_attn_implementation(ATTENTION)
    with reading(list(model.get_submodule(layers)), added, kept):
        model(torch.tensor([ids]), use_cache=False)
    found = []
    for before, after, attn, z in zip(kept["before"], kept["after"], kept["added"], plan.z, strict=True):
        found.append([(after - before)[0], attn.reshape(before.shape)[0] * factor, *z])
    return found


def naive_distances(model: Any, ids: list[int], *, layers: str, added: str, factor: float = 1.0) -> np.ndarray:
    """(L2, 1 - cos) and the size of the baseline, at the last position: ``l token site 3``."""
    where = {"layers": layers, "added": added, "factor": factor}
    baseline = sites(model, ids, **where, plan=Plan())
    table = np.zeros((len(baseline), len(ids), len(baseline[0]), 3))
    for layer, whole in enumerate(baseline):
        for token in range(len(ids)):
            masked = sites(model, ids, **where, plan=Plan(layer, (token,)))[layer]
            for site, (b, m) in enumerate(zip(whole, masked, strict=True)):
                b, m = b[-1].double(), m[-1].double()
                gap = float((m - b).norm())
                table[layer, token, site] = gap, float(1 - b @ m / (b.norm() * m.norm())), float(b.norm())
    return table
