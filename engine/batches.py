"""Several prompts as one batch of rows.

Everything but attention sees flat rows, one per real token, so padding costs no arithmetic; attention sees a grid,
padded on the right, which the causal mask already keeps out of every real query's sight.

Axes: ``b`` prompt, ``s`` position, ``v`` variant, ``k`` key position, ``r`` row (one per token of any prompt),
``m`` difference row (one per variant of any prompt).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from engine.difference import Origins
from engine.knockouts import Knockouts


@dataclass(frozen=True)
class Ragged:
    """Rows of unequal groups laid end to end, and the same as a grid padded on the right."""

    lengths: tuple[int, ...]
    device: torch.device

    @property
    def width(self) -> int:
        return max(self.lengths)

    @cached_property
    def slots(self) -> Int[Tensor, " r"] | None:
        """Where each row lies in the flattened grid; None when all groups are equally long."""
        if len(set(self.lengths)) == 1:
            return None
        slots = [np.arange(length) + i * self.width for i, length in enumerate(self.lengths)]
        return torch.from_numpy(np.concatenate(slots)).to(self.device)

    def grid(self, rows: Shaped[Tensor, "r ..."]) -> Shaped[Tensor, "b s ..."]:
        """Lay rows out as a grid; padding is 0."""
        if self.slots is not None:
            padded = rows.new_zeros(len(self.lengths) * self.width, *rows.shape[1:])
            rows = padded.index_copy_(0, self.slots, rows)
        return rearrange(rows, "(b s) ... -> b s ...", b=len(self.lengths))

    def rows(self, grid: Shaped[Tensor, "b s ..."]) -> Shaped[Tensor, "r ..."]:
        """Take the rows back out of a grid."""
        flat = rearrange(grid, "b s ... -> (b s) ...")
        return flat if self.slots is None else flat.index_select(0, self.slots)


@dataclass(frozen=True)
class Batch:
    """Token ids of all prompts and the knockouts to make in them, ready on the device."""

    token_ids: Int[Tensor, " r"]
    positions: Int[Tensor, " r"]
    prompts: Ragged
    variants: Ragged
    query_positions: Int[Tensor, " b"]
    query_rows: Int[Tensor, " b"]
    origins: Origins
    """The row of the query that each variant differs from."""
    query_origins: Origins
    """The same among the query rows alone, one per prompt."""
    hidden: Bool[Tensor, "b v k"]

    def at_query(self, rows: Float[Tensor, "r c"]) -> Float[Tensor, "b c"]:
        return rows.index_select(0, self.query_rows)


def make_batch(prompts: Sequence[Sequence[int]], knockouts: Sequence[Knockouts], device: torch.device) -> Batch:
    """Lay out prompts (token ids) and one set of knockouts for each."""
    lengths = tuple(len(ids) for ids in prompts)
    counts = tuple(len(knockout.masked) for knockout in knockouts)
    starts = np.concatenate(([0], np.cumsum(lengths)[:-1]))
    queries = np.array([knockout.query_position for knockout in knockouts])
    hidden = np.zeros((len(prompts), max(counts), max(lengths)), dtype=bool)
    for i, knockout in enumerate(knockouts):
        hidden[i, : counts[i]] = knockout.hidden(max(lengths))

    def on_device(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    return Batch(
        token_ids=on_device(np.concatenate([np.asarray(ids, dtype=np.int64) for ids in prompts])),
        positions=on_device(np.concatenate([np.arange(length) for length in lengths])),
        prompts=Ragged(lengths, device),
        variants=Ragged(counts, device),
        query_positions=on_device(queries),
        query_rows=on_device(starts + queries),
        origins=Origins(np.repeat(starts + queries, counts), device),
        query_origins=Origins(np.repeat(np.arange(len(prompts)), counts), device),
        hidden=on_device(hidden),
    )
