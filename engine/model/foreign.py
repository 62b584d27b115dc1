"""A transformers model of no described family, as passes see it: its own layers, run by its own code."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from engine.errors import ModelError
from engine.model.additions import Addition
from engine.model.borrowing import borrowed
from engine.model.handover import Attending
from engine.model.view import Heads, Route, Sight, View
from engine.model.visits import Visit, visits


@dataclass(frozen=True)
class ForeignLayer:
    """One layer in the order of the forward; a model may call a module several times."""

    module: nn.Module
    attention: nn.Module
    added: Addition
    """What the attention adds to the stream."""


@dataclass(frozen=True)
class Foreign(View):
    """A model that is only borrowed: between two calls it is what its owner made it.

    ``stored`` is the dtype of its own arithmetic, ``tokens`` the size of its vocabulary, ``channels`` the width of its
    stream.
    """

    model: Any
    name: str
    layers: tuple[ForeignLayer, ...]
    sights: tuple[Sight, ...]
    heads: Heads
    channels: int
    tokens: int
    max_positions: int
    dtype: torch.dtype
    stored: torch.dtype
    device: torch.device
    rope_by_length: bool = False
    route: Route = "generic"

    @property
    def vocab_size(self) -> int:
        return self.tokens

    @property
    def hidden_size(self) -> int:
        return self.channels

    @property
    def architecture(self) -> str:
        """The name of the model's class."""
        return type(self.model).__name__

    def visits(self, token_ids: Int[Tensor, " s"]) -> list[Visit]:
        """The calls of the layers in a forward of one prompt. Raises ``ModelError`` if they are not the known ones."""
        with borrowed(self.model, Attending()):
            made = visits(self.model, dict.fromkeys(layer.module for layer in self.layers), token_ids)
        if [visit.layer for visit in made] != [layer.module for layer in self.layers]:
            raise ModelError(f"{self.architecture} calls its layers in another order for {len(token_ids)} tokens")
        return made

    def logits(self, residual: Float[Tensor, "r e"]) -> Float[Tensor, "r c"]:
        """Next-token logits from streams that leave the last layer, by a forward in which they do just that."""

        def replaced(_: nn.Module, __: Any, output: Any) -> Any:
            if isinstance(output, Tensor):
                return residual[None].to(output.dtype)
            return residual[None].to(output[0].dtype), *output[1:]

        with borrowed(self.model, Attending()):
            hook = self.layers[-1].module.register_forward_hook(replaced)
            try:
                token_ids = torch.zeros(1, len(residual), dtype=torch.int64, device=self.device)
                return self.model(input_ids=token_ids, use_cache=False).logits[0]
            finally:
                hook.remove()
