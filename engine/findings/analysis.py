"""What stands out in an impact table: tokens, layers, heads and single cells, with statistics and a profile.

The table is read in batches, twice: once for moments, best cells and histograms, once more to make the quantiles
exact. So memory holds a batch and one entry per token, not the file. Each kind of variant has rankings of its own, for
each distance.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from engine.errors import ResultsError
from engine.findings.cells import BY_HEAD, DISTANCES, cell_batches, variant_name
from engine.findings.quantiles import QUANTILES, bucket_histogram, quantiles
from engine.findings.sums import best, distinct, greatest, leading, moments, pooled, rounded, scored, summed

Sums = dict[str, pl.DataFrame]


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """The findings in a table of results, as small frames.

    ``counts`` says what was read: ``rows``, ``skipped_rows``, ``layers``, ``tokens`` (None for a dataset with several
    queries), ``heads``, ``prompts`` and ``query_positions`` (None where no column tells) and the null cells per
    distance. The rankings ``tokens``, ``layers``, ``heads`` and ``cells`` have ``distance``, ``kind`` and ``rank`` in
    front; ``profile`` is the mean per layer; ``statistics`` has a row per distance and variant. Null cells are counted
    and otherwise skipped.
    """

    counts: dict[str, int | None]
    skip_first: bool
    tokens: pl.DataFrame
    layers: pl.DataFrame
    heads: pl.DataFrame
    cells: pl.DataFrame
    profile: pl.DataFrame
    statistics: pl.DataFrame


def analyze(lazy: pl.LazyFrame, *, top: int = 10, skip_first: bool = False, num_prompts: int | None = None) -> Analysis:
    """Summarise the impact table ``lazy``; each ranking keeps its ``top`` best rows.

    With ``skip_first`` the rows of position 0 are left out of everything but ``counts["skipped_rows"]``. Tokens are
    told apart by position and text, and by ``prompt_id`` where there is one. Equal values are ordered by layer,
    position, head and prompt. With ``num_prompts`` the table is that of a dataset of so many prompts, each of which
    lies in one piece: then memory does not grow with their number. Raises ``ResultsError`` for a table without any
    defined distance, with NaN or infinite ones, with rows that lack a label, or with an unknown variant.
    """
    kept = lazy.filter(pl.col("token_position").ne_missing(0)) if skip_first else lazy
    names = lazy.collect_schema().names()
    more = [name for name in ("masked_positions", "prompt_id") if name in names]
    token = ["token_position", "token_masked", *more]
    cell = ["layer", "token_position", "code", "token_masked", *more, *({"query_position"} & {*names})]
    sums = _first_reading(kept, token, cell, top=top, in_pieces=num_prompts is not None)
    _require_defined(sums, skip_first=skip_first)
    layers = pooled(sums["groups"], ["distance", "kind", "layer"])
    variants = pooled(sums["groups"], ["distance", "kind", "code"])
    return Analysis(
        counts=_counts(sums, token, skipped_rows=_first_rows(lazy) if skip_first else 0, num_prompts=num_prompts),
        skip_first=skip_first,
        tokens=_ranked(sums["tokens"], "mean", token, top=top),
        layers=_ranked(layers, "mean", ["layer"], top=top),
        heads=_ranked(sums["groups"].filter(pl.col("kind").is_in(BY_HEAD)), "mean", ["layer", "code"], top=top),
        cells=_ranked(sums["cells"], "value", cell, top=top),
        profile=_profile(layers),
        statistics=_statistics(variants, quantiles(kept, variants, sums["histogram"])),
    )


def _first_reading(lazy: pl.LazyFrame, token: Sequence[str], cell: Sequence[str], *, top: int, in_pieces: bool) -> Sums:
    """Everything but the exact quantiles; nothing at all for a table without rows."""
    by_token = ["distance", "kind", *token]
    sums = {
        "groups": moments(["distance", "kind", "layer", "code"]),
        "tokens": leading(by_token, token, top=top) if in_pieces else moments(by_token),
        "cells": greatest(cell, top=top),
        "histogram": bucket_histogram(),
        "queries": distinct([name for name in cell if name == "query_position"]),
    }
    return summed(cell_batches(lazy, [name for name in cell if name != "code"]), sums)


def _require_defined(sums: Sums, *, skip_first: bool) -> None:
    beyond = " beyond position 0; leave --skip-first out" if skip_first else "; give a file that holds an impact table"
    if not sums or sums["groups"].is_empty():
        raise ResultsError(f"there are no rows{beyond}")
    if sums["groups"]["infinite"].sum():
        raise ResultsError("some distances are NaN or infinite; undefined cells must be null: measure again")
    if not sums["groups"]["count"].sum():
        raise ResultsError(f"no distance is defined, all are null{beyond}")


def _first_rows(lazy: pl.LazyFrame) -> int:
    """How many rows are of position 0."""
    return lazy.select((pl.col("token_position") == 0).sum()).collect(engine="streaming").item()


def _counts(sums: Sums, token: Sequence[str], *, skipped_rows: int, num_prompts: int | None) -> dict[str, int | None]:
    groups, tokens, queries = sums["groups"], sums["tokens"], sums["queries"]
    if num_prompts is None:
        num_tokens: int | None = tokens.select(token).n_unique()
        num_prompts = tokens["prompt_id"].n_unique() if "prompt_id" in token else None
    else:
        # Every token has a row in every layer and variant; of several queries, one for each that sees it.
        num_tokens = None if queries.width else max(groups["rows"])
    of = {name: groups.filter(distance=name) for name in DISTANCES}
    return {
        "rows": int(of["l2_distance"]["rows"].sum()),
        "skipped_rows": skipped_rows,
        "layers": groups["layer"].n_unique(),
        "tokens": num_tokens,
        "heads": groups.filter(kind="Head")["code"].n_unique(),
        "prompts": num_prompts,
        "query_positions": len(queries) if queries.width else None,
        **{f"null_{name}": int((part["rows"] - part["count"]).sum()) for name, part in of.items()},
    }


def _ranked(frame: pl.DataFrame, score: str, labels: Sequence[str], *, top: int) -> pl.DataFrame:
    """The ``top`` rows of each distance and kind by ``score``, with their ranks."""
    leaders = best(frame.lazy(), score, labels, top=top).collect()
    rank = pl.int_range(1, pl.len() + 1).over("distance", "kind").alias("rank")
    named = [variant_name() if name == "code" else name for name in labels]
    return leaders.select("distance", "kind", rank, *named, score, pl.col("^count$"))


def _profile(layers: pl.DataFrame) -> pl.DataFrame:
    """The mean of each layer and kind."""
    ordered = scored(layers.lazy(), "mean").collect().sort("distance", "kind", "layer")
    return ordered.select("distance", "kind", "layer", "mean", "count")


def _statistics(variants: pl.DataFrame, quantiles: pl.DataFrame) -> pl.DataFrame:
    """One row per distance and variant; ``std`` is that of a sample (n - 1) and null for a single value."""
    spread = (pl.col("m2") / (pl.col("count") - 1)).sqrt()
    several, equal = pl.col("count") > 1, pl.col("min") == pl.col("max")
    std = pl.when(several & equal).then(0.0).when(several).then(spread)
    nulls = (pl.col("rows") - pl.col("count")).alias("null_count")
    joined = variants.with_columns(std=std).join(quantiles, on=["distance", "code"], how="left")
    numbers = [rounded(name) for name in ("mean", "std", "min", *QUANTILES, "max")]
    return joined.sort("distance", "code").select("distance", variant_name(), "count", nulls, *numbers)
