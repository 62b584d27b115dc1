"""Where travelling effects are read: rows of forks, and the baseline's rows at the same positions.

Axes: ``m`` read (one per prompt and thing read), ``u`` baseline row that reads compare with, ``c`` channel.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from engine.kernels.difference import Carried, Origins
from engine.sweeps.journey import Journey
from engine.sweeps.readout import Readout, Site
from engine.sweeps.travelling import Station
from engine.text.forks import Bundle


@dataclass(frozen=True)
class Reads:
    """The rows of one journey that are read, prompt by prompt in the order in which they were asked for."""

    positions: tuple[int, ...]
    """The positions that are read, each once; the baseline rows are theirs, prompt by prompt."""
    places: Int[np.ndarray, " m"]
    """The difference row of each read, counted from the first when all forks have joined; -1 where nothing differs."""
    baseline: Int[np.ndarray, " u"]
    of: Origins
    """The baseline row, among the ``u``, of each read."""

    def of_baseline(self, x: Carried) -> Float[Tensor, "u c"]:
        """The baseline rows that reads compare with."""
        return x.baseline.index_select(0, torch.from_numpy(self.baseline).to(x.rows.device, non_blocking=True))

    def of_forks(self, x: Carried) -> Float[Tensor, "m c"]:
        """The difference of each read."""
        return self.among(x.delta)

    def among(self, rows: Float[Tensor, "n c"], *, nowhere: float = 0.0) -> Float[Tensor, "m c"]:
        """The row of each read among the forks' rows; ``nowhere`` is what stands for a fork that does not differ."""
        there = self.places >= 0
        found = rows.index_select(0, torch.from_numpy(self.places[there]).to(rows.device, non_blocking=True))
        if there.all():
            return found
        where = torch.from_numpy(np.flatnonzero(there)).to(rows.device, non_blocking=True)
        return found.new_full((len(there), found.shape[1]), nowhere).index_copy_(0, where, found)

    def rows(self, x: Carried) -> Carried:
        """Baseline rows and reads, to be carried on together."""
        return Carried(torch.cat((self.of_baseline(x), self.of_forks(x))), len(self.baseline), self.of)


def reads_of(journey: Journey, asked: Iterable[tuple[int, int]]) -> Reads:
    """The reads of (fork, position) pairs, in every prompt of the journey; forks are counted as they were bundled."""
    pairs = list(asked)
    positions = sorted({position for _, position in pairs})
    b, s = journey.token_ids.shape
    homes = _homes(journey)
    within = [_place(homes, fork, position) for fork, position in pairs]
    places = [[first + p * step if first >= 0 else -1 for first, step in within] for p in range(b)]
    order = {position: index for index, position in enumerate(positions)}
    of = [[p * len(positions) + order[position] for _, position in pairs] for p in range(b)]
    return Reads(
        positions=tuple(positions),
        places=np.array(places, dtype=np.int64).ravel(),
        baseline=np.array([p * s + position for p in range(b) for position in positions], dtype=np.int64),
        of=Origins(np.array(of, dtype=np.int64).ravel(), journey.decoder.device),
    )


def _place(homes: dict[int, tuple[int, Bundle]], fork: int, position: int) -> tuple[int, int]:
    """The row of a fork at a position in the first prompt, and how far the next prompt's is from it; -1 for none."""
    first, bundle = homes.get(fork, (0, None))
    if bundle is None or not bundle.start <= position < bundle.stop:
        return -1, 0
    return first + position - bundle.start, bundle.num_positions


def _homes(journey: Journey) -> dict[int, tuple[int, Bundle]]:
    """The first row of every fork that differs at all, when all have joined, and its bundle."""
    homes, first = {}, 0
    for bundle, size in zip(journey.bundles, journey.sizes, strict=True):
        for place in bundle.places:
            homes[place] = first, bundle
            first += size
    return homes


def read_stations(
    journey: Journey, reads: Reads, stations: Iterable[Station], layers: set[int], sites: tuple[str, ...]
) -> Iterator[Readout]:
    """What the reads show in each of ``layers``, as a sweep would show it."""
    for station in stations:
        found = tuple(_sites(journey, reads, station, sites)) if station.layer in layers else ()
        yield Readout(station.layer, station.residual.baseline, found)


def _sites(journey: Journey, reads: Reads, station: Station, more: tuple[str, ...]) -> Iterator[Site]:
    """Full, Attn, the heads and ``more``."""
    attn, mlp, z = (Site(reads.of_baseline(x), reads.of_forks(x)) for x in (station.attn, station.mlp, station.z))
    count = journey.decoder.heads.num_heads
    yield Site(attn.baseline + mlp.baseline, attn.delta + mlp.delta)
    yield attn
    left = None if station.left is None else reads.among(station.left, nowhere=torch.inf)
    yield Site(z.baseline, z.delta, count, left)
    if "MLP" in more:
        yield mlp
    if "Resid" in more:
        yield Site(reads.of_baseline(station.residual), reads.of_forks(station.residual))
    if "Result_h" in more:
        results = station.head_results
        assert results is not None
        of_left = None if left is None else results(left)
        yield Site(results(z.baseline), results(z.delta), count, of_left)
