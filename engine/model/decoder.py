"""One uniform view on the weights of a decoder, whatever its family calls them.

Nothing is copied that is not tiny: the projections hold the model's own weights. Axes: ``n`` row, ``e`` residual
channel, ``h`` head, ``kv`` key/value head, ``g`` query head in its kv group, ``d`` head channel, ``c`` vocabulary.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from engine.kernels.difference import Activation, Carried, RMSNorm, carry_gated
from engine.kernels.projection import Projection
from engine.kernels.rotary import RotaryTables, rotary_tables
from engine.model.view import Heads as Heads
from engine.model.view import Route, View


@dataclass(frozen=True)
class Attention:
    """Weights of an attention block; ``qk_norm`` holds a weight row for every query head, then every key head."""

    qkv: Projection
    output: Projection
    heads: Heads
    scale: float
    window: int | None = None
    qk_norm: RMSNorm | None = None

    def project(
        self, normed: Float[Tensor, "r e"], rotary: RotaryTables
    ) -> tuple[Float[Tensor, "r qk d"], Float[Tensor, "r kv d"]]:
        """Queries and keys of every row, positions applied, side by side in the order ``qk = (kv g) + kv``; values."""
        heads = self.heads
        every = rearrange(self.qkv(normed), "r (h d) -> r h d", d=heads.head_dim)
        qk, v = every.split((heads.num_heads + heads.num_kv_heads, heads.num_kv_heads), dim=1)
        return rotary.rotate(qk if self.qk_norm is None else self.qk_norm(qk)), v

    def split(self, qk: Float[Tensor, "r qk d"]) -> tuple[Float[Tensor, "r h d"], Float[Tensor, "r kv d"]]:
        """Queries, in the order ``h = (kv g)``, and keys."""
        q, k = qk.split((self.heads.num_heads, self.heads.num_kv_heads), dim=1)
        return q, k


@dataclass(frozen=True)
class GatedMLP:
    """down(act(gate(x)) · up(x)) (Shazeer 2020, arXiv 2002.05202)."""

    gate_up: Projection
    down: Projection
    activation: Activation

    def carry(self, x: Carried) -> Carried:
        return self.down.carry(carry_gated(self.gate_up.carry(x), self.activation))


@dataclass(frozen=True)
class Layer:
    """A pre-norm decoder layer: x + attn(attn_norm(x)), then mid + mlp(mlp_norm(mid))."""

    attn_norm: RMSNorm
    attention: Attention
    mlp_norm: RMSNorm
    mlp: GatedMLP

    def project(
        self, residual: Float[Tensor, "r e"], rotary: RotaryTables, *, max_rows: int
    ) -> tuple[Float[Tensor, "r h d"], Float[Tensor, "r kv d"], Float[Tensor, "r kv d"]]:
        """Queries, keys and values of every row, at most ``max_rows`` rows at a time."""
        attention, heads, num_rows = self.attention, self.attention.heads, len(residual)
        if num_rows <= max_rows:
            qk, v = attention.project(self.attn_norm(residual), rotary)
            return *attention.split(qk), v
        qk = residual.new_empty(num_rows, heads.num_heads + heads.num_kv_heads, heads.head_dim)
        v = residual.new_empty(num_rows, heads.num_kv_heads, heads.head_dim)
        for start in range(0, num_rows, max_rows):
            rows = slice(start, min(start + max_rows, num_rows))
            qk[rows], v[rows] = attention.project(self.attn_norm(residual[rows]), rotary.part(rows))
        return *attention.split(qk), v

    def carry_mlp(self, mid: Carried) -> Carried:
        """What the MLP adds to the stream between attention and MLP."""
        return self.mlp.carry(self.mlp_norm.carry(mid))


@dataclass(frozen=True)
class Decoder(View):
    """A decoder-only model of a described family."""

    name: str
    embedding: Float[Tensor, "c e"]
    layers: tuple[Layer, ...]
    final_norm: RMSNorm
    unembedding: Projection
    rope: Callable[[int], tuple[Float[Tensor, "s d"], Float[Tensor, "s d"]]]
    heads: Heads
    max_positions: int
    dtype: torch.dtype
    device: torch.device
    rope_by_length: bool = False
    route: Route = "fused"

    @property
    def vocab_size(self) -> int:
        return len(self.embedding)

    @property
    def width(self) -> int:
        return self.embedding.shape[1]

    @property
    def windows(self) -> tuple[int | None, ...]:
        return tuple(layer.attention.window for layer in self.layers)

    def embed(self, token_ids: Int[Tensor, " r"]) -> Float[Tensor, "r e"]:
        return F.embedding(token_ids, self.embedding).to(self.dtype)

    def rotary(self, positions: Int[Tensor, " r"], num_positions: int) -> RotaryTables:
        """The model's own rotary tables for the rows' positions, all below ``num_positions``."""
        cos, sin = self.rope(num_positions)
        return rotary_tables(cos.index_select(0, positions), sin.index_select(0, positions))

    def projections(self) -> Iterator[Projection]:
        """The projections of all layers, in the order in which a pass needs them."""
        for layer in self.layers:
            yield from (layer.attention.qkv, layer.attention.output, layer.mlp.gate_up, layer.mlp.down)

    @property
    def weight_bytes(self) -> int:
        """Size of the layers' weight matrices."""
        return sum(weight.nbytes for projection in self.projections() for weight in projection.weights)

    @property
    def is_packed(self) -> bool:
        return any(weight.is_mkldnn for projection in self.projections() for weight in projection.weights)

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
        assert (self.dtype, self.embedding.dtype) == (torch.float32, torch.bfloat16)
        for projection in (*self.projections(), self.unembedding):
            projection.split = True

    def logits(self, residual: Float[Tensor, "r e"]) -> Float[Tensor, "r c"]:
        """Next-token logits from the stream that leaves the last layer."""
        return self.unembedding(self.final_norm(residual))
