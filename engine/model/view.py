"""What runs ask of a model, whichever route it takes: its size and place, but none of its weights."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

Route = Literal["fused", "generic"]


@dataclass(frozen=True)
class Heads:
    """How the channels of a query/key/value projection divide into heads."""

    num_heads: int
    num_kv_heads: int
    head_dim: int


class View(ABC):
    """A causal language model as passes and tables see it."""

    name: str
    heads: Heads
    layers: Sequence[Any]
    max_positions: int
    dtype: torch.dtype
    """That of the residual stream and of every difference."""
    device: torch.device
    route: Route
    """fused: a described family, whose layers the engine computes; generic: the model runs its own layers."""
    rope_by_length: bool
    """Whether the rotary tables of a position depend on the length of the prompt."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Token ids are below."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Channels of the residual stream."""

    @property
    @abstractmethod
    def windows(self) -> tuple[int | None, ...]:
        """The sliding window of every layer, None where a query sees all earlier positions."""

    @property
    def takes_one_prompt(self) -> bool:
        """Whether a pass holds no more than one prompt."""
        return self.route == "generic"

    @property
    def weight_bytes(self) -> int:
        """Size of the weights that ``pack`` would lay out."""
        return 0

    @property
    def is_packed(self) -> bool:
        """Whether weights are laid out for this machine's kernel."""
        return False

    def pack(self) -> None:
        """Lay weights out for this machine's kernel, where that is faster."""

    @abstractmethod
    def logits(self, residual: Float[Tensor, "r e"]) -> Float[Tensor, "r c"]:
        """Next-token logits from the stream that leaves the last layer."""
