"""A decoder layer, in the forms that families give it.

Axes as in ``decoder``; ``r`` row, ``qk`` query heads and behind them key heads.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from engine.kernels.difference import Carried, carry_in_chunks, without_roundings
from engine.kernels.norms import Norm
from engine.kernels.projection import Projection
from engine.kernels.rotary import Rotaries, RotaryTables
from engine.kernels.scores import Scoring
from engine.model.mlps import MLP, Experts
from engine.model.view import Heads as Heads


@dataclass(frozen=True)
class Attention:
    """Weights of an attention block, and how it makes patterns."""

    qkv: Projection
    output: Projection
    heads: Heads
    scoring: Scoring
    window: int | None = None
    qk_norm: Norm | None = None
    """Norms heads one by one, with a weight row for every query head and then every key head, or all together."""
    rope: str | None = "default"
    """Which rotary tables turn queries and keys; None for none."""
    by_head: bool = False
    """Whether ``qkv`` gives query, key and value head by head, and not all queries first."""

    def project(
        self, normed: Float[Tensor, "r e"], tables: RotaryTables | None
    ) -> tuple[Float[Tensor, "r qk d"], Float[Tensor, "r kv d"]]:
        """Queries and keys of every row, positions applied, side by side in the order ``qk = (kv g) + kv``; values."""
        qk, v = self.divide(self.qkv(normed))
        qk = qk if self.qk_norm is None else self.qk_norm(qk)
        return qk if tables is None else tables.rotate(qk), v

    def divide(self, rows: Float[Tensor, "r c"]) -> tuple[Float[Tensor, "r qk d"], Float[Tensor, "r kv d"]]:
        """Rows of ``qkv`` as queries and keys, and values."""
        pattern = "r (h part d) -> r (part h) d" if self.by_head else "r (part h d) -> r (part h) d"
        every = rearrange(rows, pattern, d=self.heads.head_dim, part=3 if self.by_head else 1)
        qk, v = every.tensor_split((self.heads.num_heads + self.heads.num_kv_heads,), dim=1)
        return qk, v

    def split(self, qk: Float[Tensor, "r qk d"]) -> tuple[Float[Tensor, "r h d"], Float[Tensor, "r kv d"]]:
        """Queries, in the order ``h = (kv g)``, and keys."""
        q, k = qk.tensor_split((self.heads.num_heads,), dim=1)
        return q, k


@dataclass(frozen=True)
class Layer:
    """A decoder layer: x + attn(attn_norm(x)), then mid + mlp(mlp_norm(mid)); what each adds may be normed once more,
    and is multiplied by ``multiplier``. In a ``parallel`` layer the MLP reads x as well, and both are added at once.
    """

    attn_norm: Norm | None
    attention: Attention
    mlp_norm: Norm | None
    mlp: MLP
    attn_post_norm: Norm | None = None
    mlp_post_norm: Norm | None = None
    multiplier: float = 1.0
    parallel: bool = False

    def project(
        self, residual: Float[Tensor, "r e"], rotaries: Rotaries, *, max_rows: int
    ) -> tuple[Float[Tensor, "r h d"], Float[Tensor, "r kv d"], Float[Tensor, "r kv d"]]:
        """Queries, keys and values of every row, at most ``max_rows`` rows at a time."""
        attention, heads, num_rows = self.attention, self.attention.heads, len(residual)
        tables = None if attention.rope is None else rotaries[attention.rope]
        if num_rows <= max_rows:
            qk, v = attention.project(self.normed(residual), tables)
            return *attention.split(qk), v
        qk = residual.new_empty(num_rows, heads.num_heads + heads.num_kv_heads, heads.head_dim)
        v = residual.new_empty(num_rows, heads.num_kv_heads, heads.head_dim)
        for start in range(0, num_rows, max_rows):
            rows = slice(start, min(start + max_rows, num_rows))
            part = None if tables is None else tables.part(rows)
            qk[rows], v[rows] = attention.project(self.normed(residual[rows]), part)
        return *attention.split(qk), v

    def normed(self, residual: Float[Tensor, "r e"]) -> Float[Tensor, "r e"]:
        """What the attention reads."""
        return residual if self.attn_norm is None else self.attn_norm(residual)

    def project_carried(self, stream: Carried, rotaries: Rotaries, *, max_rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """As ``project``, of baseline and difference rows: a rotation turns differences as it turns rows."""
        attention = self.attention
        every = carry_in_chunks(
            lambda part: attention.qkv.carry(_normed(self.attn_norm, part)), stream, max_rows=max_rows
        )
        qk, v = attention.divide(every.rows)
        if attention.qk_norm is not None:
            qk = attention.qk_norm.carry(stream.with_rows(qk)).rows
        return *attention.split(qk if attention.rope is None else rotaries[attention.rope].rotate(qk)), v

    def carry_attn(self, z: Carried) -> Carried:
        """What the attention adds to the stream, from the heads' outputs."""
        return self._added(self.attention.output.carry(z), self.attn_post_norm)

    def head_results(self, z: Float[Tensor, "r c"]) -> Float[Tensor, "r he"]:
        """What each head adds to the stream, side by side; before the norm behind the attention, if there is one."""
        return self.attention.output.shares(z, self.attention.heads.num_heads) * self.multiplier

    def carry_mlp(self, entering: Carried, middle: Carried, *, max_rows: int) -> Carried:
        """What the MLP adds to the stream; ``middle`` is the stream with the attention's share, ``entering`` without.

        A parallel layer reads ``entering``, which may have no differences at all: then what is added has none.
        """
        source = entering if self.parallel else middle
        if isinstance(self.mlp, Experts):
            out = self._mlp_out(source)
        else:
            out = carry_in_chunks(self._mlp_out, source, max_rows=max_rows)
        missing = len(middle.origins) - len(out.origins)
        assert not (missing and len(out.origins))
        return middle.with_rows(F.pad(out.rows, (0, 0, 0, missing))) if missing else out

    def _mlp_out(self, stream: Carried) -> Carried:
        return self._added(self.mlp.carry(_normed(self.mlp_norm, stream)), self.mlp_post_norm)

    def _added(self, x: Carried, norm: Norm | None) -> Carried:
        out = x if norm is None else norm.carry(without_roundings(x))
        return out if self.multiplier == 1.0 else out.with_rows(out.rows * self.multiplier)

    @property
    def device(self) -> torch.device:
        """Where its weights lie."""
        return self.attention.output.weights[0].device

    def norms(self) -> Iterator[Norm]:
        """All norms, those of queries and keys among them."""
        of_layer = (self.attn_norm, self.attention.qk_norm, self.attn_post_norm, self.mlp_norm, self.mlp_post_norm)
        yield from (norm for norm in of_layer if norm is not None)

    def projections(self) -> Iterator[Projection]:
        """All projections, in the order in which a pass needs them."""
        yield from (self.attention.qkv, self.attention.output, *self.mlp.projections())


def _normed(norm: Norm | None, x: Carried) -> Carried:
    return x if norm is None else norm.carry(x)
