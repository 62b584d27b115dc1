"""Which keys each row of a batch may attend to: what a knockout hides, the causal order, a sliding window.

Axes: ``b`` prompt, ``v`` variant, ``k`` key position, ``g`` query head in its key/value group, ``n`` row of one prompt
and its masked copies. Boolean masks say in their name what True means.
"""

from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from engine.kernels.batches import Batch


def visible_keys(query: Int[Tensor, " b"], num_keys: int, window: int | None) -> Bool[Tensor, "b k"]:
    """The keys that each query position may attend to: not after it and, with a window, fewer than w before it."""
    distance = rearrange(query, "b -> b 1") - torch.arange(num_keys, device=query.device)
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)


@dataclass(frozen=True, slots=True)
class Masks:
    """What the queries of a batch see through one window: their visible keys, and the variants left with none."""

    visible: Bool[Tensor, "b 1 1 k"]
    blind: Bool[Tensor, "b 1 v 1 1"] | None


def query_masks(batch: Batch, window: int | None) -> Masks:
    """The masks of every prompt's query."""
    visible = visible_keys(batch.query_positions, batch.prompts.width, window)
    return Masks(rearrange(visible, "b k -> b 1 1 k"), batch.blind(window))


@dataclass(frozen=True, slots=True)
class MaskedCopies:
    """One prompt with its masked copies as the rows of one attention: ``num_baseline`` rows, then one per variant."""

    queries: Int[Tensor, " n"]
    """The position whose query each row asks."""
    masks: Float[Tensor, "1 k gn"]
    """0 where the row may attend, -inf elsewhere; rows in the order ``(g n)``."""
    hidden: Float[Tensor, "k 1 v"]
    """1 where variant v hides key k, 0 elsewhere."""
    num_baseline: int
    origin: int
    """The baseline row that the variants are copies of."""


def masked_copies(
    batch: Batch, window: int | None, *, only_query: bool, group: int, dtype: torch.dtype
) -> MaskedCopies:
    """The rows of a batch of one prompt; with ``only_query`` the query is the one baseline row."""
    num_positions, num_variants = batch.prompts.width, batch.variants.width
    query = batch.query_positions
    baseline = query if only_query else torch.arange(num_positions, device=query.device)
    queries = torch.cat((baseline, query.expand(num_variants)))
    hidden = batch.hidden[0, 0, :, 0]
    allowed = visible_keys(queries, num_positions, window)
    allowed[len(baseline) :] &= ~hidden
    masks = repeat(torch.where(allowed, 0.0, -torch.inf).to(dtype), "n k -> 1 k (g n)", g=group)
    hidden_keys = rearrange(hidden.to(dtype), "v k -> k 1 v")
    origin = 0 if only_query else batch.knockouts[0].query_position
    return MaskedCopies(queries, masks, hidden_keys, len(baseline), origin)
