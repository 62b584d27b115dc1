"""The layer loop in which effects travel: every fork rides on from its first layer to the end.

Rows are the baseline's, one per token, and behind them the forks' differences at the positions that a fork carries. A
fork joins at its first layer and rides on over the baseline's keys and values, so that one product per weight matrix
serves the baseline and all forks of all layers.

Axes as in ``shifts``; ``r`` baseline row ``(b s)``, ``e`` residual channel; a bundle's rows are ``(f b n)``.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor

from engine.kernels.causal import causal_z
from engine.kernels.difference import Carried
from engine.kernels.masks import visible_keys
from engine.kernels.shifts import Baseline, Hidden, Moved, shifted_pattern, shifted_z
from engine.model.layer import Layer
from engine.sweeps.journey import Journey
from engine.text.forks import Bundle


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
    left: Float[Tensor, "m c"] | None
    """The forks' head outputs themselves at the queries that are read, infinite at others; None where no knockout can
    leave next to nothing of them: a mask without a sink makes a whole pattern of whatever it leaves."""
    head_results: Callable[[Float[Tensor, "n c"]], Float[Tensor, "n he"]] | None
    """What each head adds to the stream, from rows of ``z``; it holds the layer, and is there only if asked for."""


def travel(journey: Journey, *, last: int, queries: Sequence[int] = (), by_head: bool = False) -> Iterator[Station]:
    """Run the layers 0 to ``last`` and yield what each shows: what is left of heads only at the ``queries`` that are
    read, and what each head adds only if ``by_head``. The caller decides on inference mode.
    """
    decoder, passing = journey.decoder, journey.decoder.layers[: last + 1]
    runs = {device: _Run(journey.to(device), tuple(queries), by_head) for device in dict.fromkeys(decoder.places)}
    stream: Carried | None = None
    for index, device in enumerate(decoder.places[: last + 1]):
        entering = None if stream is None else stream.to(device)
        station = runs[device].layer(index, passing[index], entering)
        stream = station.residual
        yield station
        del station  # Whoever wants more of it than the stream has taken it.


@dataclass(frozen=True)
class _Run:
    """One journey on its way through those layers of a decoder that lie on one device."""

    journey: Journey
    queries: tuple[int, ...]
    by_head: bool

    def layer(self, index: int, layer: Layer, stream: Carried | None) -> Station:
        """One layer; before the first there is no stream but the embedding."""
        journey = self.journey
        active = tuple(bundle.num_active(index) for bundle in journey.bundles)
        before = tuple(bundle.num_active(index - 1) for bundle in journey.bundles)
        if stream is None:
            stream = journey.carried(self._embedded(before), before)
        z, left = self._attend(index, layer, stream, before, active)
        attn = layer.carry_attn(z)
        entering = self._widened(stream, attn, before, active)
        middle = attn.with_rows(attn.rows + entering.rows)
        mlp = layer.carry_mlp(entering, middle, max_rows=journey.limits.rows)
        results = layer.head_results if self.by_head else None
        return Station(index, z, attn, mlp, middle.with_rows(middle.rows + mlp.rows), active, left, results)

    def _embedded(self, before: Sequence[int]) -> Float[Tensor, "r e"]:
        """The baseline's first state; no fork has joined before the first layer."""
        journey = self.journey
        return journey.decoder.embed(rearrange(journey.token_ids, "b s -> (b s)"), journey.positions(before))

    def _widened(self, stream: Carried, attn: Carried, before: Sequence[int], active: Sequence[int]) -> Carried:
        """The stream with rows for the forks that join here, which had no difference yet."""
        if before == active:
            return stream
        journey, old = self.journey, self.journey.bundled(stream.delta, before)
        bundles = zip(old, before, active, journey.sizes, strict=True)
        wide = [journey.widened(rows, joined, joining, size) for rows, joined, joining, size in bundles]
        return attn.with_rows(torch.cat((stream.baseline, *wide)))

    def _attend(
        self, index: int, layer: Layer, stream: Carried, before: Sequence[int], active: Sequence[int]
    ) -> tuple[Carried, Float[Tensor, "m c"] | None]:
        """The head outputs of every row, as differences where a fork has joined, and what is left of those."""
        rotaries = self.journey.decoder.rotaries(self.journey.positions(before), self.journey.num_positions)
        q, k, v = layer.project_carried(stream, rotaries, max_rows=self.journey.limits.rows)
        s = self.journey.token_ids.shape[1]
        base = [rearrange(x[: stream.num_baseline], "(b s) h d -> b h s d", s=s) for x in (q, k, v)]
        z = causal_z(*base, scoring=layer.attention.scoring, window=layer.attention.window)
        deltas = [self.journey.bundled(x[stream.num_baseline :], before) for x in (q, k, v)]
        parts, left = [rearrange(z, "b h s d -> (b s) (h d)")], []
        for place, bundle in enumerate(self.journey.bundles):
            if active[place]:
                moved = [self.journey.grid(x[place], bundle, before[place], active[place]) for x in deltas]
                for shift, rest in self._shifted(index, layer, place, base, moved, active[place]):
                    parts.append(shift)
                    left += [] if rest is None else [rest]
        return self.journey.carried(torch.cat(parts), active), torch.cat(left) if left else None

    def _shifted(
        self, index: int, layer: Layer, place: int, base: Sequence[Tensor], moved: Sequence[Tensor], active: int
    ) -> Iterator[tuple[Float[Tensor, "fbn c"], Float[Tensor, "fbn c"] | None]]:
        """The head outputs' differences of one bundle, some forks at a time, and what is left."""
        attention, bundle = layer.attention, self.journey.bundles[place]
        q, k, v = base
        baseline = Baseline(
            q[:, :, bundle.start : bundle.stop],
            k[:, :, : bundle.stop],
            v[:, :, : bundle.stop],
            self._visible(bundle, attention.window),
            attention.scoring,
        )
        can_vanish = self.journey.intervention != "mask" or attention.scoring.sinks is not None
        queries = self._read[place] if can_vanish else None
        cells = q.shape[0] * q.shape[1] * bundle.num_positions * bundle.stop
        at_once = max(1, self.journey.limits.pattern_cells // cells)
        for start in range(0, active, at_once):
            forks = slice(start, min(start + at_once, active))
            hidden = self._hidden(index, place, forks, baseline.visible, v)
            yield _outputs(baseline, Moved(*(x[forks] for x in moved)), hidden, queries)

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
    def _keys(self) -> list[Bool[Tensor, "f n k"]]:
        return [self.journey.on_device(bundle.hidden()) for bundle in self.journey.bundles]

    @cached_property
    def _read(self) -> list[Int[Tensor, " n2"] | None]:
        """The queries of each bundle that are read; None where none is."""
        queries = np.array(self.queries, dtype=np.int64)
        within = [queries[(b.start <= queries) & (queries < b.stop)] - b.start for b in self.journey.bundles]
        return [self.journey.on_device(some) if self.queries else None for some in within]

    @cached_property
    def _cuts(self) -> list[Bool[Tensor, "l f"]]:
        layers = range(len(self.journey.decoder.layers))
        return [self.journey.on_device(np.stack([b.cut(layer) for layer in layers])) for b in self.journey.bundles]

    @cached_property
    def _cut_heads(self) -> Bool[Tensor, "l h"] | None:
        return None if self.journey.heads is None else self.journey.on_device(self.journey.heads)


def _outputs(
    base: Baseline, moved: Moved, hidden: Hidden, queries: Int[Tensor, " n2"] | None
) -> tuple[Float[Tensor, "fbn c"], Float[Tensor, "fbn c"] | None]:
    """Some forks' head outputs: how they differ and, at ``queries``, what they are."""
    patterns = shifted_pattern(base, moved, hidden)
    shift = shifted_z(base, moved, patterns, mean=hidden.mean)
    left = None
    if queries is not None:
        there = shifted_z(base, moved, patterns.at(queries), mean=hidden.mean, whole=True)
        left = rearrange(torch.full_like(shift, torch.inf).index_copy_(2, queries, there), "f b n c -> (f b n) c")
    return rearrange(shift, "f b n c -> (f b n) c"), left
