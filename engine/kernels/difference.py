"""Baseline rows with the differences that a knockout makes, carried together through a layer.

Subtracting two nearly equal activations destroys small effects, so no two activations are ever subtracted: every
step maps (x, Δ) to (f(x), f(x + Δ) - f(x)) by a form in which Δ enters as a factor. The result keeps its relative
accuracy however small Δ is. Baseline and difference rows lie in one tensor, so that a weight matrix multiplies both
in one product.

Axes: ``r`` baseline row, ``m`` difference row, ``n`` = r + m, ``c`` channel (e residual, f MLP, ...).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

RESOLVED = 8
"""A vector x + Δ of fewer than so many roundings of x is 0 as far as can be told."""


@dataclass(frozen=True, eq=False)
class Origins:
    """The baseline row of each difference row; known on the host, so that rows can be cut without a wait."""

    host: Int[np.ndarray, " m"]
    device: torch.device
    _parts: dict[tuple[int, int], tuple[Tensor, "Origins"]] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.host)

    @cached_property
    def rows(self) -> Int[Tensor, " m"]:
        return torch.from_numpy(self.host).to(self.device, non_blocking=True)

    @cached_property
    def only(self) -> int | None:
        """The one baseline row that all differences belong to, if there is just one."""
        return int(self.host[0]) if len(self.host) and (self.host == self.host[0]).all() else None

    def take(self, baseline: Float[Tensor, "r ... c"]) -> Float[Tensor, "_ ... c"]:
        """The baseline row of every difference row; a single row, to be broadcast, where all share one."""
        return baseline.index_select(0, self.rows) if self.only is None else baseline[self.only : self.only + 1]

    def part(self, start: int, stop: int) -> tuple[Int[Tensor, " r"], "Origins"]:
        """The distinct baseline rows that differences ``start`` to ``stop`` need, and their origins among those."""
        if (start, stop) not in self._parts:
            needed, inverse = np.unique(self.host[start:stop], return_inverse=True)
            rows = torch.from_numpy(needed).to(self.device, non_blocking=True)
            self._parts[start, stop] = rows, Origins(inverse, self.device)
        return self._parts[start, stop]

    def to(self, device: torch.device) -> "Origins":
        """The same on another device."""
        return self if device == self.device else Origins(self.host, device)

    def none(self) -> "Origins":
        """Origins of no difference row at all."""
        return Origins(self.host[:0], self.device)


@dataclass(frozen=True, slots=True)
class Carried:
    """Baseline rows first, difference rows behind them; a row may be divided into heads."""

    rows: Float[Tensor, "n ... c"]
    num_baseline: int
    origins: Origins

    @property
    def baseline(self) -> Float[Tensor, "r ... c"]:
        return self.rows[: self.num_baseline]

    @property
    def delta(self) -> Float[Tensor, "m ... c"]:
        return self.rows[self.num_baseline :]

    def split(self, rows: Float[Tensor, "n ... c2"]) -> tuple[Float[Tensor, "r ... c2"], Float[Tensor, "m ... c2"]]:
        """Baseline and difference part of other rows in the same order."""
        r = self.num_baseline
        baseline, delta = rows.split_with_sizes((r, len(rows) - r))
        return baseline, delta

    def with_rows(self, rows: Float[Tensor, "n ... c2"]) -> "Carried":
        return Carried(rows, self.num_baseline, self.origins)

    def to(self, device: torch.device) -> "Carried":
        """The same on another device."""
        return Carried(self.rows.to(device), self.num_baseline, self.origins.to(device))

    def chunks(self, max_rows: int) -> Iterator[tuple["Carried", slice, int]]:
        """Parts of about ``max_rows`` rows: (part, the rows of the whole that it gives, how many of its first to skip).

        A part with difference rows brings along the few baseline rows they differ from, which it only borrows.
        """
        r = self.num_baseline
        for start in range(0, r, max_rows):
            place = slice(start, min(start + max_rows, r))
            yield Carried(self.rows[place], place.stop - place.start, self.origins.none()), place, 0
        for start in range(0, len(self.origins), max_rows):
            stop = min(start + max_rows, len(self.origins))
            needed, origins = self.origins.part(start, stop)
            rows = torch.cat((self.baseline.index_select(0, needed), self.delta[start:stop]))
            yield Carried(rows, len(needed), origins), slice(r + start, r + stop), len(needed)


def carried(baseline: Float[Tensor, "r c"], delta: Float[Tensor, "m c"], origins: Origins) -> Carried:
    """Lay ``delta`` behind ``baseline``."""
    return Carried(torch.cat((baseline, delta)), len(baseline), origins)


def without_roundings(x: Carried) -> Carried:
    """Where x + Δ is 0 as far as can be told, Δ becomes -x, in place: a norm would lift what roundings leave of it."""
    if len(x.origins):
        origin = x.origins.take(x.baseline)
        left, size = (torch.linalg.vector_norm(each, dim=-1, keepdim=True) for each in (origin + x.delta, origin))
        is_gone = left <= RESOLVED * torch.finfo(x.rows.dtype).eps * size
        x.delta.copy_(torch.where(is_gone, -origin, x.delta))
    return x


def carry_in_chunks(step: Callable[[Carried], Carried], x: Carried, *, max_rows: int) -> Carried:
    """``step(x)`` with at most about ``max_rows`` rows in work at once. ``step`` must treat rows independently."""
    if len(x.rows) <= max_rows:
        return step(x)
    out = None
    for part, place, borrowed in x.chunks(max_rows):
        rows = step(part).rows[borrowed:]
        out = rows.new_empty(len(x.rows), rows.shape[1]) if out is None else out
        out[place] = rows
    assert out is not None
    return x.with_rows(out)
