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


@dataclass(frozen=True, slots=True)
class Sight:
    """What a layer's queries can see: the keys in their ``window``, and a sink that takes what no key gets."""

    window: int | None = None
    has_sink: bool = False


class View(ABC):
    """A causal language model as passes and tables see it."""

    name: str
    heads: Heads
    layers: Sequence[Any]
    sights: tuple[Sight, ...]
    """What every layer lets its queries see."""
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
    def hidden_size(self) -> int:
        """Channels of the residual stream."""

    @property
    def takes_one_prompt(self) -> bool:
        """Whether a pass holds no more than one prompt."""
        return self.route == "generic"

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """Every device that holds a part of it, each once; the first is where a pass begins."""
        return (self.device,)

    @property
    def is_streamed(self) -> bool:
        """Whether the weights are in files, and every pass reads them."""
        return False

    @property
    def weight_bytes(self) -> int:
        """Size of the weights that ``pack`` would lay out."""
        return 0

    @property
    def is_packed(self) -> bool:
        """Whether weights are laid out for this machine's kernel."""
        return False

    def pack(self) -> None:  # noqa: B027 - there may be nothing to do
        """Lay weights out for this machine's kernel, where that is faster."""

    @abstractmethod
    def logits(self, residual: Float[Tensor, "r e"]) -> Float[Tensor, "r c"]:
        """Next-token logits from the stream that leaves the last layer."""
