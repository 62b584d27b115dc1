"""Calls of decoder layers, as a model makes them in its own forward, and the same calls made again on other rows."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from engine.errors import ModelError

CACHES = ("cache", "past_key_value", "past_key_values", "layer_past")
"""What releases and families of transformers call the keys and values of earlier tokens."""


@dataclass(frozen=True)
class Visit:
    """One call of a layer: what it was called with, the stream among it, and the stream that left it."""

    layer: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    leaving: Float[Tensor, "1 s e"]

    @property
    def entering(self) -> Float[Tensor, "1 s e"]:
        """The stream that entered the layer."""
        return self.args[0] if self.args else self.kwargs["hidden_states"]

    def again(self) -> Float[Tensor, "1 s e"]:
        """Call the layer again; the stream that leaves it."""
        return stream_of(self.layer(*self.args, **self.kwargs))

    def at(self, positions: Int[Tensor, " s"]) -> "Visit":
        """The call in which place j holds what belongs to ``positions[j]``: its stream and all that is by position.

        The rest stays: masks, for one, which matter to the attention alone, and that is answered for.
        """
        length = self.entering.shape[1]

        def moved(x: Tensor) -> Tensor:
            by_position = x.ndim > 1 and x.shape[0] == 1 and x.shape[1] == length
            return x.index_select(1, positions) if by_position else x

        return replace(self, args=mapped(self.args, moved), kwargs=mapped(self.kwargs, moved))


def visits(model: Any, layers: Iterable[nn.Module], token_ids: Int[Tensor, " s"]) -> list[Visit]:
    """The calls of ``layers`` in the model's forward of one prompt, in the order in which they are made."""
    made: list[Visit] = []

    def note(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        made.append(Visit(layer, args, _without_cache(kwargs), stream_of(output)))

    hooks = [layer.register_forward_hook(note, with_kwargs=True) for layer in dict.fromkeys(layers)]
    try:
        forward(model, token_ids)
    finally:
        for hook in hooks:
            hook.remove()
    return made


def forward(model: Any, token_ids: Int[Tensor, " s"], *, copies: int = 1) -> Any:
    """The model's own forward of one prompt, without a cache and with as few logits as it offers."""
    names = inspect.signature(model.forward).parameters
    fewer = {"logits_to_keep": 1} if "logits_to_keep" in names else {}
    return model(input_ids=token_ids.expand(copies, -1).clone(), use_cache=False, **fewer)


def stream_of(output: Any) -> Float[Tensor, "1 s e"]:
    """The stream among what a layer gives. Raises ``ModelError`` where it gives none."""
    first = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(first, Tensor) or first.ndim != 3 or len(first) != 1:
        shape = f"of shape {tuple(first.shape)}" if isinstance(first, Tensor) else f"of type {type(first).__name__}"
        raise ModelError(
            f"a layer of this model gives something {shape}, not one residual stream (1, tokens, channels)"
        )
    return first


def _without_cache(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Keys and values of a call must not meet those of the next."""
    return {name: None if name in CACHES else value for name, value in kwargs.items()}


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same with every tensor in tuples, lists and dictionaries changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: mapped(each, change) for key, each in value.items()}
    if type(value) in (tuple, list):
        return type(value)(mapped(each, change) for each in value)
    return value
