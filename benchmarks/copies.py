"""The impact table from one pass over copies of the prompt, as a skilled user of a hooking library would write it.

Copy 0 is the baseline, copy i + 1 has token i masked in every layer. After every layer all copies go on from the
baseline's output, so that each layer is cut on its own: one pass instead of ``L * (N + 1)``, of N + 1 times the rows.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.compare import Cells
from benchmarks.naive import plain_distances


@dataclass(frozen=True)
class Shown:
    """What the final position of every copy shows in one layer."""

    attn_out: Float[Tensor, "copy e"]
    mlp_out: Float[Tensor, "copy e"]
    z: Float[Tensor, "copy (h d)"]


@dataclass(frozen=True, kw_only=True)
class PeerRun:
    """Distances of one prompt as the naive way gives them, and the L2 norms of the baseline vectors."""

    distances: Cells
    sizes: Float[np.ndarray, "l site"]


PeerCall = Callable[[], PeerRun]
MakeCall = Callable[[PreTrainedModel, list[int]], PeerCall]
"""Prepares a peer for a loaded model and one prompt (not timed), and returns the call that gives the table."""


def copies_of(token_ids: list[int], model: PreTrainedModel) -> Tensor:
    """The baseline and one copy of the prompt for every token."""
    return torch.tensor([token_ids] * (1 + len(token_ids)), device=model.device)


def peer_run(layers: list[Shown], *, num_heads: int) -> PeerRun:
    """Subtract the baseline copy from the others in every layer; one transfer at the end."""
    per_layer = torch.stack([_distances(shown, num_heads=num_heads) for shown in layers])
    values = per_layer.double().cpu().numpy()
    return PeerRun(distances=values[..., :2], sizes=values[:, 0, :, 2])


def _distances(shown: Shown, *, num_heads: int) -> Float[Tensor, "v site 3"]:
    """(L2, cosine, size of the baseline) of Full, Attn, Head_0, ... for every masked token."""
    updates = torch.stack([shown.attn_out + shown.mlp_out, shown.attn_out], dim=1)
    heads = shown.z.unflatten(1, (num_heads, -1))
    return torch.cat([_from_first(updates), _from_first(heads)], dim=1)


def _from_first(copies: Float[Tensor, "copy site c"]) -> Float[Tensor, "v site 3"]:
    masked = copies[1:]
    pairs = (vectors.flatten(0, 1) for vectors in (copies[:1].expand_as(masked), masked))
    return plain_distances(*pairs).unflatten(0, masked.shape[:2])
