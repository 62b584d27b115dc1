"""Runs of their own: which keys each hides, in which layers, and at which positions it then differs from the baseline.

A fork equals the baseline before its first layer and before its first position, so only what lies behind both is
carried. Several forks over the same positions lie side by side in a bundle.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from jaxtyping import Bool

WASTE = 1.25
"""How many more rows a bundle may carry than its forks need, so that bundles are few."""


@dataclass(frozen=True, slots=True)
class Fork:
    """The keys ``masked`` are hidden in the layers ``first`` to ``last`` - 1, at positions ``start`` to ``stop`` - 1.

    ``start`` is the first position whose query can be touched; a fork with ``start == stop`` never differs.
    """

    masked: tuple[int, ...]
    first: int
    last: int
    start: int
    stop: int
    sees_itself: bool = False
    """Whether a query keeps seeing its own position although it is masked."""

    @property
    def num_rows(self) -> int:
        return self.stop - self.start

    def hidden(self, start: int) -> Bool[np.ndarray, "n k"]:
        """True where the query at ``start + n`` does not see key k."""
        hidden = np.zeros((self.stop - start, self.stop), dtype=bool)
        hidden[:, [key for key in self.masked if key < self.stop]] = True
        hidden[: self.start - start] = False
        if self.sees_itself:
            hidden[np.arange(len(hidden)), np.arange(start, self.stop)] = False
        return hidden


@dataclass(frozen=True, slots=True)
class Bundle:
    """Forks that are carried at the same positions, in the order in which they part from the baseline."""

    start: int
    stop: int
    places: tuple[int, ...]
    """Where each fork stood in the list that was bundled."""
    forks: tuple[Fork, ...]

    @property
    def num_positions(self) -> int:
        return self.stop - self.start

    def num_active(self, layer: int) -> int:
        """How many forks have parted from the baseline in ``layer`` or before."""
        return sum(fork.first <= layer for fork in self.forks)

    def hidden(self) -> Bool[np.ndarray, "f n k"]:
        """What each fork hides in its layers."""
        return np.stack([fork.hidden(self.start) for fork in self.forks])

    def cut(self, layer: int) -> Bool[np.ndarray, " f"]:
        """True for the forks that hide something in ``layer``."""
        return np.array([fork.first <= layer < fork.last for fork in self.forks])


def bundled(forks: Sequence[Fork]) -> tuple[Bundle, ...]:
    """The forks that differ at all, in bundles of like positions."""
    order = sorted(
        (place for place, fork in enumerate(forks) if fork.num_rows), key=lambda p: (forks[p].stop, forks[p].start)
    )
    bundles: list[Bundle] = []
    for _, same in groupby(order, key=lambda p: forks[p].stop):
        bundles += [_bundle(forks, places) for places in _alike(forks, list(same))]
    return tuple(bundles)


def _alike(forks: Sequence[Fork], places: list[int]) -> Iterator[list[int]]:
    """Cut a list that is sorted by start where all that came before would carry too many rows that do not differ."""
    group: list[int] = []
    needed = 0
    for place in places:
        rows = forks[place].num_rows
        widest = forks[group[0]].num_rows if group else rows
        if group and widest * (len(group) + 1) > WASTE * (needed + rows):
            yield group
            group, needed = [], 0
        group.append(place)
        needed += rows
    if group:
        yield group


def _bundle(forks: Sequence[Fork], places: list[int]) -> Bundle:
    start, stop = min(forks[place].start for place in places), forks[places[0]].stop
    places = sorted(places, key=lambda place: forks[place].first)
    return Bundle(start, stop, tuple(places), tuple(forks[place] for place in places))
