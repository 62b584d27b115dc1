"""An impact table as cells: one row per cell and distance, with the variant as a number, read in batches.

Distances of Full, Attn and heads live in different spaces, so each cell carries the *kind* of its variant, and no
distance is ever compared across kinds.
"""

import re
from collections.abc import Iterator, Sequence

import polars as pl

from engine.errors import ResultsError

KINDS = {
    "Full": "what the layer adds to the residual stream (attention and MLP)",
    "Attn": "what the layer's attention adds to the residual stream",
    "Head": "output of each attention head, before the output projection",
}
DISTANCES = {"l2_distance": "L2", "cosine_distance": "cosine"}
LABELS = ("layer", "token_position", "token_masked", "variant")
BATCH_ROWS = 500_000

_DISTANCE = pl.Enum(list(DISTANCES))
_KIND = pl.Enum(list(KINDS))


def cell_batches(lazy: pl.LazyFrame, labels: Sequence[str]) -> Iterator[pl.DataFrame]:
    """The rows of ``lazy`` as ``labels``, ``code`` (0 Full, 1 Attn, 2 + head), ``kind``, ``distance`` and ``value``.

    Raises ``ResultsError`` for rows that lack a label and for an unknown variant.
    """
    columns = lazy.select(*labels, "variant", *DISTANCES)
    # The one call here that polars may still change; other ways read a text file once for each sum.
    for batch in columns.collect_batches(chunk_size=BATCH_ROWS, maintain_order=True):
        _require_labels(batch)
        variant = pl.col("variant").cast(pl.String)
        code = variant.replace_strict(_variant_codes(batch["variant"]), return_dtype=pl.Int32)
        kind = variant.str.head(4).cast(_KIND)  # the names of the kinds are the first four letters of their variants
        coded = batch.with_columns(code=code, kind=kind)
        yield pl.concat(coded.select(*labels, "code", "kind", *_distance(name)) for name in DISTANCES)


def variant_name() -> pl.Expr:
    """The variant that a ``code`` stands for."""
    head = pl.format("Head_{}", pl.col("code") - 2)
    whole = pl.when(pl.col("code") == 0).then(pl.lit("Full")).otherwise(pl.lit("Attn"))
    return pl.when(pl.col("code") < 2).then(whole).otherwise(head).alias("variant")


def _distance(name: str) -> tuple[pl.Expr, pl.Expr]:
    return pl.lit(name, dtype=_DISTANCE).alias("distance"), pl.col(name).cast(pl.Float32).alias("value")


def _require_labels(batch: pl.DataFrame) -> None:
    lacking = [name for name in LABELS if name in batch.columns and batch[name].null_count()]
    if lacking:
        raise ResultsError(f"some rows lack {', '.join(lacking)}; the file is damaged or cut off: write it again")


def _variant_codes(variants: pl.Series) -> dict[str, int]:
    """The place of each variant in table order."""
    names = variants.cast(pl.String).unique().to_list()
    matches = {name: re.fullmatch(r"Full|Attn|Head_(0|[1-9][0-9]{0,5})", name) for name in names}
    unknown = sorted(name for name in names if not matches[name])
    if unknown:
        shown = ", ".join(repr(name) for name in unknown[:3])
        raise ResultsError(f"unknown variant {shown}; expected Full, Attn, Head_0, Head_1, ...: is the file cut off?")
    return {name: 2 + int(match[1]) if match[1] else int(name == "Attn") for name, match in matches.items() if match}
