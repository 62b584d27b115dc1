"""One forward of a Hugging Face model with one masked column in one layer, and what the final position shows there."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from benchmarks.anatomy import anatomy_of, layers_of, multiplier_of


@dataclass(frozen=True, kw_only=True)
class Readout:
    """What the final position shows in one layer of one pass: (Full, Attn), the heads, and whether it sees a key."""

    updates: Float[Tensor, "2 e"]
    heads: Float[Tensor, "h d"]
    defined: Bool[Tensor, ""]


def read_pass(
    model: PreTrainedModel, input_ids: Int[Tensor, "1 s"], *, layer: int, masked_position: int | None
) -> Readout:
    """One full forward with one masked column (or none) in one layer, read at the final position of that layer.

    A query left without keys gives NaN rows there. They reach no other position of this layer, and what later layers
    make of them is not read.
    """
    with _tapped(model, layer, masked_position=masked_position) as seen:
        model.base_model(input_ids=input_ids, use_cache=False)
    heads = seen["z"].unflatten(-1, (model.config.num_attention_heads, -1))
    return Readout(
        updates=torch.stack([seen["residual_post"] - seen["residual_pre"], seen["attn_out"]]),
        heads=heads.clone(),
        defined=seen["defined"],
    )


@contextmanager
def _tapped(model: PreTrainedModel, index: int, *, masked_position: int | None) -> Iterator[dict[str, Tensor]]:
    """Hide the position inside the layer and note what its final position shows; the hooks go whatever happens."""
    seen: dict[str, Tensor] = {}
    anatomy, layer, multiplier = anatomy_of(model), layers_of(model)[index], multiplier_of(model)

    def hide(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        stream = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        visible = _visible(kwargs["attention_mask"], like=stream)
        if masked_position is not None:
            visible[:, masked_position] = False
        seen.update(defined=visible[-1].any() if getattr(module, "sinks", None) is None else torch.tensor(True))
        mask = torch.zeros_like(visible, dtype=stream.dtype).masked_fill(~visible, float("-inf"))
        return args, {**kwargs, "attention_mask": mask[None, None]}

    def note(name: str, factor: float = 1.0) -> Callable[[Any, Any, Any], None]:
        return lambda _, __, output: seen.update({name: _first(output)[0, -1] * factor})

    hooks = [
        layer.register_forward_pre_hook(lambda _, args: seen.update(residual_pre=args[0][0, -1])),
        layer.register_forward_hook(note("residual_post")),
        layer.get_submodule(anatomy.attention).register_forward_pre_hook(hide, with_kwargs=True),
        layer.get_submodule(anatomy.attn_added).register_forward_hook(note("attn_out", multiplier)),
        layer.get_submodule(anatomy.output).register_forward_pre_hook(lambda _, args: seen.update(z=args[0][0, -1])),
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _visible(mask: Tensor | None, *, like: Float[Tensor, "1 s e"]) -> Bool[Tensor, "s s"]:
    """Which key (column) each query (row) may attend to, from the mask that the model itself made for the layer.

    The model hands over None where plain causality is left to SDPA, a boolean mask (True = may attend) under SDPA, or
    a mask to be added under eager; sliding windows are in the mask. The result is a copy.
    """
    if mask is None:
        length = like.shape[1]
        return torch.ones(length, length, dtype=torch.bool, device=like.device).tril()
    return (mask if mask.dtype == torch.bool else mask == 0)[0, 0].clone()
