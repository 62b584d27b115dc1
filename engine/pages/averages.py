"""A set of prompts as one: means by layer, variant and place in the prompt, read as a stream."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float

from engine.errors import ResultsError
from engine.figures.grids import EFFECT, EFFECT_METRICS, IMPACT_METRICS
from engine.figures.sources import Source
from engine.pages.packing import packed
from engine.tables.columns import NOT_FINITE, UNLABELLED, is_effects, unlabelled
from engine.tables.table import PROMPT_ID

ALL, FIRST = -2, -1
"""Places beside the distances to the query: every token, and position 0."""


def averages(source: Source) -> dict[str, Any]:
    """The mean over all prompts as a grid of the page, whose cases are places: how far in front of the query.

    Distances of 3 and more are taken together in steps of two, so that memory holds a row for each layer, variant and
    step, whatever the number of rows. Undefined cells are left out of the means.
    """
    effects = is_effects(source.lazy.collect_schema().names())
    metrics = [name for name in (EFFECT_METRICS if effects else IMPACT_METRICS) if name in source.lazy.collect_schema()]
    with source.reading():
        sums = _sums(_placed(source.lazy, effects=effects), metrics)
    layers = sorted(sums["layer"].unique().to_list(), key=lambda layer: (layer is None, layer))
    variants = sums.sort("first_row")["variant"].unique(maintain_order=True).to_list()
    places = [ALL, FIRST, *sorted((p for p in sums["place"].unique() if p >= 0), reverse=True)]
    return {
        "effects": effects,
        "layers": layers,
        "cases": [{"positions": [], "text": _named(p), "first": p == FIRST, "special": False} for p in places],
        "variants": variants,
        "metrics": metrics,
        "numbers": packed(_means(sums, metrics, layers, places, variants)),
        "query": None,
        "queryName": "",
    }


def _placed(lazy: pl.LazyFrame, *, effects: bool) -> pl.LazyFrame:
    """The rows with their ``place``; without a column for it, the query is a prompt's last token."""
    bad = unlabelled(lazy.collect_schema().names())
    variant = pl.lit(EFFECT) if effects else pl.col("variant").cast(pl.String)
    lazy = lazy.with_columns(bad=bad, variant=variant)
    if "query_position" not in lazy.collect_schema():
        ends = lazy.group_by(PROMPT_ID).agg(query_position=pl.col("token_position").max())
        lazy = lazy.join(ends.collect(engine="streaming").lazy(), on=PROMPT_ID)
    distance = pl.col("query_position") - pl.col("token_position")
    step = pl.sum_horizontal(distance > limit for limit in (0, *(1 << n for n in range(20))))
    first = pl.col("token_position") == 0
    return lazy.with_columns(place=pl.when(first).then(FIRST).otherwise(step.cast(pl.Int32)))


def _sums(lazy: pl.LazyFrame, metrics: Sequence[str]) -> pl.DataFrame:
    """Sums and counts of each layer, variant and place, with the row in which a variant came first."""
    sums = [pl.col(name).cast(pl.Float64).sum().alias(f"{name}_sum") for name in metrics]
    counts = [pl.col(name).count().alias(f"{name}_count") for name in metrics]
    sizes = (*sums, *counts, pl.col("bad").any())
    found = lazy.group_by("layer", "variant", "place").agg(*sizes).collect(engine="streaming")
    if found["bad"].any():
        raise ResultsError(UNLABELLED)
    if not found.select(pl.all_horizontal(pl.col(f"{name}_sum").is_finite().all() for name in metrics)).item():
        raise ResultsError(NOT_FINITE)
    order = {name: _order(name) for name in found["variant"].unique()}
    return found.with_columns(first_row=pl.col("variant").replace_strict(order, return_dtype=pl.Int32))


def _order(variant: str) -> int:
    """The place of a variant in a table: whole layers, then heads by their numbers."""
    kind, _, head = variant.partition("_")
    kinds = ("Full", "Attn", "Head", "MLP", "Resid", "Result")
    return (kinds.index(kind) if kind in kinds else len(kinds)) * 1_000_000 + (int(head) if head.isdecimal() else 0)


def _means(
    sums: pl.DataFrame,
    metrics: Sequence[str],
    layers: Sequence[int | None],
    places: Sequence[int],
    variants: Sequence[str],
) -> Float[np.ndarray, "metric layer place variant"]:
    """Sums over counts, NaN where nothing is defined; the first place sums all others."""
    shape = (len(metrics), len(layers), len(places), len(variants))
    totals, counts = np.zeros(shape), np.zeros(shape)
    index = tuple(
        np.array([list(axis).index(value) for value in sums[name].to_list()], dtype=np.int64)
        for name, axis in (("layer", layers), ("place", places), ("variant", variants))
    )
    for number, name in enumerate(metrics):
        totals[number][index] = sums[f"{name}_sum"].to_numpy()
        counts[number][index] = sums[f"{name}_count"].to_numpy()
    totals[:, :, 0], counts[:, :, 0] = totals.sum(axis=2), counts.sum(axis=2)
    return np.divide(totals, counts, out=np.full(shape, np.nan), where=counts > 0)


def _named(place: int) -> str:
    """A place in words."""
    if place in (ALL, FIRST):
        return "all tokens" if place == ALL else "position 0"
    if place < 3:
        return "the query" if place == 0 else f"{place} before"
    return f"{(1 << place - 2) + 1}–{1 << place - 1} before"
