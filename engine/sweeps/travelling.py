"""The layer loop in which effects travel: every fork rides on from its first layer to the end.

Rows are the baseline's, one per token, and behind them the forks' differences at the positions that a fork carries. A
fork joins at its first layer and rides on over the baseline's keys and values, so that one product per weight matrix
serves the baseline and all forks of all layers.

Axes as in ``shifts``; ``r`` baseline row ``(b s)``, ``e`` residual channel; a bundle's rows are ``(f b n)``.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from einops import rearrange, reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor

from engine.kernels.causal import causal_z
from engine.kernels.difference import Carried, Origins, carry_in_chunks
from engine.kernels.masks import visible_keys
from engine.kernels.shifts import Baseline, Hidden, Moved, shifted_z
from engine.model.decoder import Decoder, Layer
from engine.questions.question import Intervention
from engine.sweeps.sweep import Limits
from engine.text.forks import Bundle

Rows = list[Float[Tensor, "fbn c"]]
"""Difference rows, bundle by bundle."""


@dataclass(frozen=True)
class Journey:
    """What travels: prompts of one length, the bundles of forks that each of them gets, and how they are cut."""

    decoder: Decoder
    token_ids: Int[Tensor, "b s"]
    bundles: tuple[Bundle, ...]
    intervention: Intervention
    heads: Bool[np.ndarray, "l h"] | None
    num_prompt: int
    """Tokens of the prompt itself; the rest is the answer that follows it."""
    limits: Limits


@dataclass(frozen=True, slots=True)
class Station:
    """What one layer shows of all rows; ``split`` gives the baseline's and each bundle's.

    ``attn`` and ``mlp`` are what is added to the stream, ``z`` the heads' outputs, ``residual`` the stream that leaves.
    """

    layer: int
    z: Carried
    attn: Carried
    mlp: Carried
    residual: Carried
    active: tuple[int, ...]
    """How many forks of each bundle have joined."""


def travel(journey: Journey, *, last: int) -> Iterator[Station]:
    """Run the layers 0 to ``last`` and yield what each shows. The caller decides on inference mode."""
    run = _Run(journey)
    stream: Carried | None = None
    for index in range(last + 1):
        station = run.layer(index, stream)
        stream = station.residual
        yield station


@dataclass(frozen=True)
class _Run:
    """One journey on its way through a decoder."""

    journey: Journey

    def layer(self, index: int, stream: Carried | None) -> Station:
        """One layer; before the first there is no stream but the embedding."""
        journey, layer = self.journey, self.journey.decoder.layers[index]
        active = tuple(bundle.num_active(index) for bundle in journey.bundles)
        before = tuple(bundle.num_active(index - 1) for bundle in journey.bundles)
        if stream is None:
            before = (0,) * len(active)
            stream = self._carried(journey.decoder.embed(rearrange(journey.token_ids, "b s -> (b s)")), before)
        z = self._attend(index, stream, before, active)
        attn = layer.attention.output.carry(z)
        attn, middle = self._added(stream, attn, before, active)
        mlp = carry_in_chunks(layer.carry_mlp, middle, max_rows=journey.limits.rows)
        return Station(index, z, attn, mlp, middle.with_rows(middle.rows + mlp.rows), active)

    def _added(
        self, stream: Carried, attn: Carried, before: Sequence[int], active: Sequence[int]
    ) -> tuple[Carried, Carried]:
        """What attention adds, and the stream with it; forks that join here had no difference yet."""
        if before == active:
            return attn, attn.with_rows(attn.rows + stream.rows)
        old = self._bundled(stream.delta, before)
        wide = [
            self._widened(rows, n, m, size) for rows, n, m, size in zip(old, before, active, self._sizes, strict=True)
        ]
        return attn, attn.with_rows(attn.rows + torch.cat((stream.baseline, *wide)))

    def _attend(self, index: int, stream: Carried, before: Sequence[int], active: Sequence[int]) -> Carried:
        """The head outputs of every row, as differences where a fork has joined."""
        layer = self.journey.decoder.layers[index]
        q, k, v = self._project(layer, stream, before)
        s, heads = self.journey.token_ids.shape[1], layer.attention.heads
        base = [rearrange(x[: stream.num_baseline], "(b s) h d -> b h s d", s=s) for x in (q, k, v)]
        z = causal_z(*base, scale=layer.attention.scale, window=layer.attention.window)
        deltas = [self._bundled(x[stream.num_baseline :], before) for x in (q, k, v)]
        parts = [rearrange(z, "b h s d -> (b s) (h d)")]
        for place, bundle in enumerate(self.journey.bundles):
            if active[place]:
                moved = [self._grid(x[place], bundle, before[place], active[place]) for x in deltas]
                parts += self._shifted(index, place, base, moved, active[place])
        assert heads.num_heads * heads.head_dim == parts[0].shape[1]
        return self._carried(torch.cat(parts), active)

    def _project(self, layer: Layer, stream: Carried, before: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of all rows, positions applied."""
        attention, heads = layer.attention, layer.attention.heads
        every = carry_in_chunks(
            lambda part: attention.qkv.carry(layer.attn_norm.carry(part)), stream, max_rows=self.journey.limits.rows
        ).rows
        split = (heads.num_heads + heads.num_kv_heads, heads.num_kv_heads)
        qk, v = rearrange(every, "n (h d) -> n h d", d=heads.head_dim).split(split, dim=1)
        if attention.qk_norm is not None:
            qk = attention.qk_norm.carry(stream.with_rows(qk)).rows
        tables = self.journey.decoder.rotary(self._positions(before), self.journey.token_ids.shape[1])
        return *attention.split(tables.rotate(qk)), v

    def _shifted(
        self, index: int, place: int, base: Sequence[Tensor], moved: Sequence[Tensor], active: int
    ) -> Iterator[Float[Tensor, "fbn c"]]:
        """The head outputs' differences of one bundle, some forks at a time."""
        attention, bundle = self.journey.decoder.layers[index].attention, self.journey.bundles[place]
        q, k, v = base
        baseline = Baseline(
            q[:, :, bundle.start : bundle.stop],
            k[:, :, : bundle.stop],
            v[:, :, : bundle.stop],
            self._visible(bundle, attention.window),
            attention.scale,
        )
        cells = q.shape[0] * q.shape[1] * bundle.num_positions * bundle.stop
        at_once = max(1, self.journey.limits.pattern_cells // cells)
        for start in range(0, active, at_once):
            forks = slice(start, min(start + at_once, active))
            hidden = self._hidden(index, place, forks, baseline.visible, v)
            z = shifted_z(baseline, Moved(*(x[forks] for x in moved)), hidden)
            yield rearrange(z, "f b n c -> (f b n) c")

    def _hidden(
        self, index: int, place: int, forks: slice, visible: Bool[Tensor, "n k"], values: Float[Tensor, "b kv s d"]
    ) -> Hidden:
        """What some forks of a bundle hide in this layer."""
        journey, heads = self.journey, self.journey.decoder.heads
        keys = self._keys[place][forks] & rearrange(self._cuts[place][index, forks], "f -> f 1 1")
        cut = keys.new_ones(heads.num_heads) if self._cut_heads is None else self._cut_heads[index]
        by_head = rearrange(cut, "(kv g) -> 1 kv 1 g 1 1", kv=heads.num_kv_heads)
        every = rearrange(keys, "f n k -> 1 1 f 1 n k") & by_head
        blind = (every | ~visible).all(-1, keepdim=True)
        mean = None
        if journey.intervention == "value-mean":
            mean = reduce(values[:, :, : journey.num_prompt], "b kv s d -> b kv d", "mean")
        return Hidden(every, blind, journey.intervention == "mask", mean)

    def _visible(self, bundle: Bundle, window: int | None) -> Bool[Tensor, "n k"]:
        positions = torch.arange(bundle.start, bundle.stop, device=self.journey.decoder.device)
        return visible_keys(positions, bundle.stop, window)

    @cached_property
    def _sizes(self) -> tuple[int, ...]:
        """Rows of one fork of each bundle, in all prompts."""
        return tuple(len(self.journey.token_ids) * bundle.num_positions for bundle in self.journey.bundles)

    @cached_property
    def _keys(self) -> list[Bool[Tensor, "f n k"]]:
        return [self._on_device(bundle.hidden()) for bundle in self.journey.bundles]

    @cached_property
    def _cuts(self) -> list[Bool[Tensor, "l f"]]:
        layers = range(len(self.journey.decoder.layers))
        return [self._on_device(np.stack([b.cut(layer) for layer in layers])) for b in self.journey.bundles]

    @cached_property
    def _cut_heads(self) -> Bool[Tensor, "l h"] | None:
        return None if self.journey.heads is None else self._on_device(self.journey.heads)

    def _on_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.journey.decoder.device, non_blocking=True)

    def _carried(self, rows: Float[Tensor, "n c"], active: Sequence[int]) -> Carried:
        """Rows with the baseline row that each difference belongs to."""
        b, s = self.journey.token_ids.shape
        host = np.concatenate([np.zeros(0, dtype=np.int64), *self._origins(active)])
        return Carried(rows, b * s, Origins(host, self.journey.decoder.device))

    def _origins(self, active: Sequence[int]) -> Iterator[Int[np.ndarray, " fbn"]]:
        b, s = self.journey.token_ids.shape
        for bundle, count in zip(self.journey.bundles, active, strict=True):
            rows = np.arange(b)[:, None] * s + np.arange(bundle.start, bundle.stop)
            yield np.tile(rows.ravel(), count)

    def _positions(self, active: Sequence[int]) -> Int[Tensor, " n"]:
        """The position of every row."""
        b, s = self.journey.token_ids.shape
        return self._on_device(np.concatenate([np.arange(b * s), *self._origins(active)]) % s)

    def _bundled(self, delta: Float[Tensor, "m ..."], active: Sequence[int]) -> Rows:
        return list(delta.split([count * size for count, size in zip(active, self._sizes, strict=True)]))

    def _widened(self, rows: Tensor, before: int, active: int, size: int) -> Tensor:
        """Rows of forks that join, which are zeros, behind those that are there."""
        missing = (active - before) * size
        return F.pad(rows, (0, 0) * (rows.ndim - 1) + (0, missing)) if missing else rows

    def _grid(self, rows: Float[Tensor, "fbn h d"], bundle: Bundle, before: int, active: int) -> Tensor:
        """A bundle's rows by fork, prompt and position."""
        b, n = len(self.journey.token_ids), bundle.num_positions
        wide = self._widened(rows, before, active, b * n)
        return rearrange(wide, "(f b n) h d -> f b n h d", b=b, n=n)
