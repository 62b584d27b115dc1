"""The naive reference: one forward of an unmodified Hugging Face model per layer and masked token.

For every layer one baseline pass and one pass per masked token, ``L * (N + 1)`` in all. In the pass of (layer l, token
p) layer l, and no other, is given a mask whose column p is -inf for every query and head. What the final position shows
is read in that layer with hooks: Full (layer output minus layer input), Attn (what attention adds to the residual
stream) and Head_h (head h's part of the output projection's input). The baseline pass of layer l hands it the same
explicit mask without the column, so that the two runs share one attention kernel and differ in the column alone.

The passes run the base model: nothing here reads logits, so the vocabulary head is left out, in favour of this side.
Being the oracle of the tests and the baseline of the benchmarks, it imports nothing of the engine; in float32 it is
itself inexact, so exact answers need ``oracle.float64_model``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.anatomy import anatomy_of, layers_of
from benchmarks.taps import Readout, read_pass


@dataclass(frozen=True, kw_only=True)
class NaiveRun:
    """Distances of one prompt, and what they cost.

    ``distances`` holds (L2, cosine) in its last axis, NaN where the query sees nothing, where a cosine has no direction
    and where ``max_passes`` ended the run; ``sizes`` holds the L2 norms of the baseline vectors.
    """

    distances: Float[np.ndarray, "l v site 2"]
    sizes: Float[np.ndarray, "l site"]
    token_ids: list[int]
    layers: list[int]
    tokens: list[int]
    num_passes: int
    all_passes: int


def run_naive(
    model: PreTrainedModel,
    token_ids: Sequence[int],
    *,
    layers: Sequence[int] | None = None,
    tokens: Sequence[int] | None = None,
    wide: bool = False,
    max_passes: int | None = None,
) -> NaiveRun:
    """Measure every (layer, token) with a forward of its own; all layers and all tokens when none are chosen.

    ``wide`` reduces the distances in float64, whatever the model computes in. ``max_passes`` ends the run early, for
    timing a stated number of passes: ``num_passes`` and ``all_passes`` of the result say how many of how many ran.
    """
    _check_supported(model)
    layers = list(range(len(layers_of(model))) if layers is None else layers)
    tokens = list(range(len(token_ids)) if tokens is None else tokens)
    input_ids = torch.tensor([list(token_ids)], device=next(model.parameters()).device)
    plan = [(layer, token) for layer in layers for token in [None, *tokens]]
    distances, sizes = _walk(model.eval(), input_ids, plan[:max_passes], wide=wide)
    shape = (len(layers), len(tokens), 2 + model.config.num_attention_heads)
    return NaiveRun(
        distances=_filled(distances, shape=(*shape[:2], shape[2], 2)),
        sizes=_filled(sizes, shape=(shape[0], shape[2])),
        token_ids=list(token_ids),
        layers=layers,
        tokens=tokens,
        num_passes=len(plan[:max_passes]),
        all_passes=len(plan),
    )


@torch.inference_mode()
def _walk(
    model: PreTrainedModel, input_ids: Int[Tensor, "1 s"], plan: list[tuple[int, int | None]], *, wide: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """Distances of the masked passes and sizes of the baseline passes, in the order of the plan."""
    distances, sizes = [], []
    baseline = None
    for layer, token in plan:
        readout = read_pass(model, input_ids, layer=layer, masked_position=token)
        if token is None:
            baseline = readout
            sizes.append(_per_site(readout, readout, wide=wide)[..., 2])
        else:
            assert baseline is not None
            distances.append(_per_site(baseline, readout, wide=wide)[..., :2])
    return distances, sizes


def _per_site(baseline: Readout, masked: Readout, *, wide: bool) -> Float[Tensor, "site 3"]:
    """(L2, cosine, size of the baseline) of Full, Attn, Head_0, ...; NaN where the query sees nothing."""
    pairs = [(baseline.updates, masked.updates), (baseline.heads, masked.heads)]
    values = torch.cat([plain_distances(b, m, wide=wide) for b, m in pairs])
    return values.where(baseline.defined & masked.defined, torch.nan)


def plain_distances(
    baseline: Float[Tensor, "n c"], masked: Float[Tensor, "n c"], *, wide: bool = False
) -> Float[Tensor, "n 3"]:
    """Per row: |m - b|, 1 - cos(b, m), |b|, as one writes them down, in the dtype given or (``wide``) in float64."""
    b, m = (baseline.double(), masked.double()) if wide else (baseline, masked)
    size = b.norm(dim=-1)
    cosine = (b * m).sum(dim=-1) / (size * m.norm(dim=-1))
    return torch.stack([(m - b).norm(dim=-1), 1 - cosine, size], dim=-1)


def _filled(values: list[Tensor], *, shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
    """The passes that ran as one float64 array, and NaN for those that did not."""
    array = np.full(shape, np.nan)
    if values:
        block = torch.stack(values).double().cpu().numpy()
        array.reshape(-1, *block.shape[1:])[: len(block)] = block
    return array


def _check_supported(model: PreTrainedModel) -> None:
    anatomy_of(model)
    attention = model.config._attn_implementation
    if attention not in ("sdpa", "eager"):
        raise ValueError(f"attention {attention!r} takes no 4-D mask; load the model with attn_implementation='sdpa'")


def naive_table(run: NaiveRun, *, pieces: Sequence[str] | None = None) -> pl.DataFrame:
    """The run as the long table: layer, position, then Full, Attn, Head_0, ...; undefined cells are null.

    ``pieces`` are the texts of all tokens of the prompt; without them the token ids stand in. Distances are float64.
    """
    texts = [str(token_id) for token_id in run.token_ids] if pieces is None else pieces
    variants = ["Full", "Attn", *(f"Head_{head}" for head in range(run.distances.shape[2] - 2))]
    labels = [(layer, texts[p], p, variant) for layer in run.layers for p in run.tokens for variant in variants]
    columns = ["layer", "token_masked", "token_position", "variant"]
    types: dict[str, Any] = {"layer": pl.Int32, "token_position": pl.Int32, "variant": pl.Enum(variants)}
    cells = pl.DataFrame(run.distances.reshape(-1, 2), schema=["l2_distance", "cosine_distance"])
    table = pl.DataFrame(labels, schema=columns, schema_overrides=types, orient="row")
    return table.hstack(cells.fill_nan(None))
