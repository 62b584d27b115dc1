"""Several prompts as one batch of rows.

Everything but attention sees flat rows, one per real token, so padding costs no arithmetic; attention sees a grid,
padded on the right, which the causal mask already keeps out of every real query's sight.

What is read is a query of a prompt under its knockouts, most often the last; a prompt can be read at several queries.

Axes: ``p`` prompt, ``b`` reading (prompt and query), ``s`` position, ``v`` variant, ``k`` key position, ``r`` row (one
per token of any prompt), ``m`` difference row (one per variant of any reading).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from engine.kernels.difference import Origins
from engine.text.knockouts import Knockouts


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

    def heads(self, rows: Float[Tensor, "r h d"]) -> Float[Tensor, "p h s d"]:
        """Lay the rows' heads out for attention; padding is 0."""
        if self.slots is not None:
            padded = rows.new_zeros(len(self.lengths) * self.width, *rows.shape[1:])
            rows = padded.index_copy_(0, self.slots, rows)
        return rearrange(rows, "(p s) h d -> p h s d", p=len(self.lengths))

    def from_heads(self, grid: Float[Tensor, "p h s d"]) -> Float[Tensor, "r c"]:
        """Take the rows back out, heads flattened into channels ``c = (h d)``."""
        flat = rearrange(grid, "p h s d -> (p s) (h d)")
        return flat if self.slots is None else flat.index_select(0, self.slots)

    def rows(self, grid: Float[Tensor, "b s c"]) -> Float[Tensor, "r c"]:
        """Take the rows out of a grid."""
        flat = rearrange(grid, "b s c -> (b s) c")
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
    """The same among the query rows alone, one per reading."""
    knockouts: tuple[Knockouts, ...]
    """Those of each reading."""
    of: tuple[int, ...]
    """The prompt of each reading."""

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        if device == self.prompts.device:
            return self
        rows = {name: getattr(self, name).to(device) for name in ("token_ids", "positions")}
        queries = {name: getattr(self, name).to(device) for name in ("query_positions", "query_rows")}
        grids = {name: replace(getattr(self, name), device=device) for name in ("prompts", "variants")}
        origins = {name: getattr(self, name).to(device) for name in ("origins", "query_origins")}
        return replace(self, **rows, **queries, **grids, **origins)

    def at_query(self, rows: Float[Tensor, "r ..."]) -> Float[Tensor, "b ..."]:
        """The rows of the queries; of a single prompt without a copy."""
        if self.only_query is None:
            return rows.index_select(0, self.query_rows)
        return rows[self.only_query : self.only_query + 1]

    def of_readings(self, grid: Float[Tensor, "p ..."]) -> Float[Tensor, "b ..."]:
        """What belongs to the prompts, for each of their readings; without a copy where each prompt has one."""
        if self.of == tuple(range(len(grid))):
            return grid
        return grid.expand(len(self.of), *grid.shape[1:]) if len(grid) == 1 else grid.index_select(0, self._of_rows)

    @cached_property
    def _of_rows(self) -> Int[Tensor, " b"]:
        return torch.tensor(self.of, device="cpu").to(self.prompts.device, non_blocking=True)

    @cached_property
    def only_query(self) -> int | None:
        """The row of the query, if there is only one reading."""
        return self.knockouts[0].query_position if len(self.knockouts) == 1 else None

    @cached_property
    def hidden(self) -> Bool[Tensor, "b 1 v 1 k"]:
        """True where variant v of reading b hides key k, in the axes of the variants' patterns."""
        return self._by_variant(Knockouts.hidden)

    @cached_property
    def chosen(self) -> Bool[Tensor, "b 1 v 1 k"]:
        """True where variant v of reading b masks key k, even if the query keeps seeing it, being there itself."""
        return self._by_variant(Knockouts.chosen)

    def _by_variant(self, grid: Callable[[Knockouts, int], Bool[np.ndarray, "v k"]]) -> Bool[Tensor, "b 1 v 1 k"]:
        found = np.zeros((len(self.knockouts), self.variants.width, self.prompts.width), dtype=bool)
        for reading, knockouts in zip(found, self.knockouts, strict=True):
            reading[: len(knockouts.masked)] = grid(knockouts, self.prompts.width)
        return rearrange(torch.from_numpy(found), "b v k -> b 1 v 1 k").to(self.prompts.device, non_blocking=True)

    @cached_property
    def single_keys(self) -> Int[Tensor, "b v"] | None:
        """The one key that each variant hides (0 in padding); None when a variant hides several."""
        columns = [knockouts.single_keys for knockouts in self.knockouts]
        keys = np.zeros((len(columns), self.variants.width), dtype=np.int64)
        for row, column in zip(keys, columns, strict=True):
            if column is None:
                return None
            row[: len(column)] = column
        return torch.from_numpy(keys).to(self.prompts.device, non_blocking=True)

    @cached_property
    def every_key(self) -> bool:
        """Whether variant i hides key i in every reading, for all keys of prompts that are all equally long."""
        keys = np.arange(self.prompts.width)
        columns = [knockouts.single_keys for knockouts in self.knockouts]
        return all(column is not None and np.array_equal(column, keys) for column in columns)

    def blind(self, window: int | None) -> Bool[Tensor, "b 1 v 1 1"] | None:
        """The variants that leave their query without any visible key; None when there is none."""
        blind = np.zeros((len(self.knockouts), self.variants.width), dtype=bool)
        for row, knockouts in zip(blind, self.knockouts, strict=True):
            row[: len(knockouts.masked)] = knockouts.undefined(window)
        if not blind.any():
            return None
        return rearrange(torch.from_numpy(blind), "b v -> b 1 v 1 1").to(self.prompts.device, non_blocking=True)


def make_batch(
    prompts: Sequence[Sequence[int]],
    knockouts: Sequence[Knockouts],
    device: torch.device,
    *,
    of: Sequence[int] | None = None,
) -> Batch:
    """Lay out prompts (token ids) and the knockouts of each reading, which is one ``of`` a prompt (default: each)."""
    lengths = tuple(len(ids) for ids in prompts)
    counts = tuple(len(knockout.masked) for knockout in knockouts)
    of = tuple(range(len(prompts)) if of is None else of)
    starts = np.concatenate(([0], np.cumsum(lengths)[:-1]))[list(of)]
    queries = np.array([knockout.query_position for knockout in knockouts])

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
        query_origins=Origins(np.repeat(np.arange(len(of)), counts), device),
        knockouts=tuple(knockouts),
        of=of,
    )
