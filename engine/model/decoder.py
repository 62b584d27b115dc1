"""One uniform view on the weights of a decoder, whatever its family calls them.

Nothing is copied that is not tiny: the projections hold the model's own weights. Axes: ``n`` row, ``e`` residual
channel, ``h`` head, ``kv`` key/value head, ``g`` query head in its kv group, ``d`` head channel, ``c`` vocabulary.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from engine.kernels.norms import Norm
from engine.kernels.projection import Projection
from engine.kernels.rotary import Rotaries, rotary_tables
from engine.model.ends import Embedding, StoredEmbedding, Unembedding
from engine.model.layer import Layer
from engine.model.streaming import Streamed
from engine.model.view import Heads, Route, View
from engine.model.view import Sight as Sight

Rope = Callable[[int], tuple[Float[Tensor, "s d"], Float[Tensor, "s d"]]]
"""Prompt length -> cosines and sines."""


@dataclass(frozen=True)
class Decoder(View):
    """A decoder-only model of a described family.

    A pass takes each of ``layers`` once, in order; ``sights`` says without any weights what they let queries see.
    """

    name: str
    embedding: Embedding | StoredEmbedding
    layers: Sequence[Layer]
    sights: tuple[Sight, ...]
    final_norm: Norm
    unembedding: Unembedding
    ropes: Mapping[str, Rope]
    heads: Heads
    max_positions: int
    dtype: torch.dtype
    device: torch.device
    rope_by_length: bool = False
    route: Route = "fused"
    folder: Path | None = None
    """Where the files lie that it was read from."""

    @property
    def vocab_size(self) -> int:
        return self.embedding.vocab_size

    @property
    def hidden_size(self) -> int:
        return self.embedding.hidden_size

    def embed(self, token_ids: Int[Tensor, " r"], positions: Int[Tensor, " r"]) -> Float[Tensor, "r e"]:
        """The stream that enters the first layer."""
        return self.embedding(token_ids, positions, self.dtype)

    def rotaries(self, positions: Int[Tensor, " r"], num_positions: int) -> Rotaries:
        """The model's own rotary tables for the rows' positions, all below ``num_positions``, by the rope's name."""
        tables = ((name, rope(num_positions)) for name, rope in self.ropes.items())
        return {name: rotary_tables(*(x.index_select(0, positions) for x in pair)) for name, pair in tables}

    def projections(self) -> Iterator[Projection]:
        """The projections of all layers, in the order in which a pass needs them."""
        for layer in self.layers:
            yield from layer.projections()

    @cached_property
    def places(self) -> tuple[torch.device, ...]:
        """Where each layer computes."""
        if self.is_streamed:
            return (self.device,) * len(self.layers)
        return tuple(layer.device for layer in self.layers)

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """Every device that holds a part of it, each once; the first is where a pass begins."""
        return tuple(dict.fromkeys((self.embedding.table.device, *self.places, self.unembedding.device)))

    def seen_from(self, device: torch.device) -> "Decoder":
        """The same decoder for those of its layers that compute on ``device``."""
        if device == self.device:
            return self
        return replace(self, device=device, ropes={name: _moved(rope, device) for name, rope in self.ropes.items()})

    @property
    def is_streamed(self) -> bool:
        """Whether the weights are in files, and every pass reads them."""
        return isinstance(self.layers, Streamed)

    @property
    def is_packed(self) -> bool:
        """Whether weights were laid out for this machine's kernel; those in files never are."""
        weights = (weight for projection in self.projections() for weight in projection.weights)
        return not self.is_streamed and any(weight.is_mkldnn for weight in weights)

    @property
    def weight_bytes(self) -> int:
        """Size of the layers' weight matrices."""
        return sum(weight.nbytes for projection in self.projections() for weight in projection.weights)

    def pack(self) -> None:
        """Lay every layer's weights out for this machine's kernel, where that is faster."""
        scratch: dict[torch.Size, Tensor] = {}
        for projection in self.projections():
            projection.pack(scratch)

    def join(self) -> None:
        """Make one matrix of those that read the same input. Only for weights that nobody else holds."""
        for projection in self.projections():
            projection.join()

    def split_products(self) -> None:
        """From now on multiply float32 rows by the bfloat16 weights to float32's accuracy; see ``split.splits``.

        Everything else is wide already: the stream, the norms, the biases and the embedding's rows.
        """
        assert self.dtype == torch.float32
        assert isinstance(self.unembedding.projection, Projection)
        for projection in (*self.projections(), self.unembedding.projection):
            projection.split = True

    def logits(self, residual: Float[Tensor, "r e"]) -> Float[Tensor, "r c"]:
        """Next-token logits from the stream that leaves the last layer."""
        return self.unembedding(self.final_norm(residual.to(self.unembedding.device)))


def _moved(rope: Rope, device: torch.device) -> Rope:
    """The same tables on another device."""

    @lru_cache(maxsize=8)
    def tables(num_positions: int) -> tuple[Float[Tensor, "s d"], Float[Tensor, "s d"]]:
        cos, sin = rope(num_positions)
        return cos.to(device), sin.to(device)

    return tables
