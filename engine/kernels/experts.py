"""Mixtures of experts whose rows carry differences (Shazeer et al. 2017, arXiv 1701.06538).

A router gives every row a few experts, and each of them a weight. A knockout moves the weights, and may move a row to
other experts; both are followed. Axes: ``n`` row, ``r`` baseline row, ``m`` difference row, ``x`` expert.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from engine.kernels.difference import Carried, Origins
from engine.kernels.projection import Projection

CLOSE = 0.5
"""Shifts of router logits below which weights are carried as differences; larger ones are as good subtracted."""


@dataclass(frozen=True, slots=True)
class Router:
    """Softmax over all experts, of which the ``top_k`` largest count; ``renormalised`` makes those sum to 1."""

    logits: Projection
    top_k: int
    renormalised: bool

    def weights(self, logits: Float[Tensor, "n x"]) -> Float[Tensor, "n x"]:
        """The weight of every expert; 0 for those that are not chosen."""
        chosen = self._chosen(logits)
        if self.renormalised:
            return torch.softmax(logits.masked_fill(~chosen, -torch.inf), dim=-1)
        return torch.softmax(logits, dim=-1) * chosen

    def change(
        self, logits: Float[Tensor, "#m x"], weights: Float[Tensor, "#m x"], shift: Float[Tensor, "m x"]
    ) -> tuple[Float[Tensor, "m x"], Float[Tensor, "m x"]]:
        """The weights after the logits moved by ``shift``, and how far they moved; one row of both may serve all.

        Where a row keeps its experts, a small change is w·(x - t)/(1 + t) with x = expm1(shift) and t its mean under
        the softmax; elsewhere both weights are far enough apart to be subtracted.
        """
        moved = self.weights(logits + shift)
        share = weights if self.renormalised else torch.softmax(logits, dim=-1)
        growth = torch.expm1(shift.clamp(max=1.0))
        mean = torch.linalg.vecdot(share, growth)[..., None]
        close = weights * (growth - mean) / (1 + mean)
        same = ((moved > 0) == (weights > 0)).all(-1, keepdim=True)
        is_close = same & (shift.abs().amax(-1, keepdim=True) < CLOSE)
        return moved, torch.where(is_close, close, moved - weights)

    def _chosen(self, logits: Float[Tensor, "n x"]) -> Bool[Tensor, "n x"]:
        top = logits.topk(self.top_k, dim=-1).indices
        return torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, top, True)


@dataclass(frozen=True)
class Routed:
    """The weights of every row: before, after and by how much they moved."""

    baseline: Float[Tensor, "r x"]
    moved: Float[Tensor, "m x"]
    change: Float[Tensor, "m x"]

    def rows(self) -> tuple[Bool[np.ndarray, "r x"], Bool[np.ndarray, "m x"]]:
        """Which rows each expert has to see, on the host: choosing rows takes one wait for the device."""
        used = torch.cat((self.baseline != 0, (self.moved != 0) | (self.change != 0))).cpu().numpy()
        return used[: len(self.baseline)], used[len(self.baseline) :]


def route(router: Router, x: Carried) -> Routed:
    """The experts of every row; everything after the product in float64, where the device has it."""
    baseline, shift = (_wide(part) for part in x.split(router.logits.carry(x).rows))
    weights = router.weights(baseline)
    moved, change = router.change(x.origins.take(baseline), x.origins.take(weights), shift)
    return Routed(*(each.to(x.rows.dtype) for each in (weights, moved, change)))


def carry_experts(x: Carried, routed: Routed, expert: Callable[[int, Carried], Carried]) -> Carried:
    """The weighted sum of the experts and its difference: with weights w, w' and an expert's values y, y',

        w'·y' - w·y = w'·(y' - y) + (w' - w)·y

    Each expert sees only the rows that chose it, before or after, and the baseline rows that those differ from.
    """
    out = Carried(torch.zeros_like(x.rows), x.num_baseline, x.origins)
    for index, baseline, delta in _visits(x.origins, *routed.rows()):
        device = x.rows.device
        here, there = (torch.from_numpy(rows).to(device, non_blocking=True) for rows in (baseline, delta))
        origins = Origins(np.searchsorted(baseline, x.origins.host[delta]), device)
        rows = torch.cat((x.baseline.index_select(0, here), x.delta.index_select(0, there)))
        seen = expert(index, Carried(rows, len(baseline), origins))
        weights, moved, change = (
            each[:, index : index + 1].index_select(0, rows)
            for each, rows in ((routed.baseline, here), (routed.moved, there), (routed.change, there))
        )
        out.baseline.index_add_(0, here, weights * seen.baseline)
        if len(delta):
            out.delta.index_add_(0, there, moved * seen.delta + change * origins.take(seen.baseline))
    return out


def _visits(
    origins: Origins, baseline: Bool[np.ndarray, "r x"], delta: Bool[np.ndarray, "m x"]
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(expert, baseline rows, difference rows) of every expert that some row needs; baseline rows are sorted."""
    for expert in np.flatnonzero(baseline.any(axis=0) | delta.any(axis=0)):
        rows = np.flatnonzero(delta[:, expert])
        needed = baseline[:, expert].copy()
        needed[origins.host[rows]] = True
        yield int(expert), np.flatnonzero(needed), rows


def _wide(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    return x if x.device.type == "mps" else x.double()
