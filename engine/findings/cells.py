"""An impact table as cells: one row per cell and distance, with the variant as a number, read in batches.

Distances of Full, Attn and heads live in different spaces, so each cell carries the *kind* of its variant, and no
distance is ever compared across kinds.
"""

import re
from collections.abc import Iterator, Sequence

import polars as pl

from engine.errors import ResultsError
from engine.tables.batches import batches
from engine.tables.columns import VARIANT

KINDS = {
    "Full": "what the layer adds to the residual stream (attention and MLP)",
    "Attn": "what the layer's attention adds to the residual stream",
    "Head": "output of each attention head, before the output projection",
    "MLP": "what the layer's MLP adds to the residual stream",
    "Resid": "the residual stream that leaves the layer",
    "Result": "what each head adds to the residual stream",
}
BY_HEAD = ("Head", "Result")
"""Kinds with a variant for each head."""
DISTANCES = {"l2_distance": "L2", "cosine_distance": "cosine"}
LABELS = ("layer", "token_position", "token_masked", "variant")
BATCH_ROWS = 500_000
MOST_HEADS = 1_000_000
FIRST_HEAD = 2
MLP = FIRST_HEAD + MOST_HEADS
FIRST_RESULT = MLP + 2
CODES = {"Full": 0, "Attn": 1, "MLP": MLP, "Resid": MLP + 1}
"""The places of variants in table order; those of heads lie between, those of their results behind."""
CODES_BACK = {code: name for name, code in CODES.items()}

_DISTANCE = pl.Enum(list(DISTANCES))
_KIND = pl.Enum(list(KINDS))


def cell_batches(lazy: pl.LazyFrame, labels: Sequence[str]) -> Iterator[pl.DataFrame]:
    """The rows of ``lazy`` as ``labels``, ``code`` (see ``CODES``), ``kind``, ``distance`` and ``value``.

    Raises ``ResultsError`` for rows that lack a label and for an unknown variant.
    """
    columns = lazy.select(*labels, "variant", *DISTANCES)
    for batch in batches(columns, rows=BATCH_ROWS):
        _require_labels(batch)
        coded = batch.with_columns(coded_variants(batch["variant"]))
        yield pl.concat(coded.select(*labels, "code", "kind", *_distance(name)) for name in DISTANCES)


def variant_name() -> pl.Expr:
    """The variant that a ``code`` stands for."""
    code = pl.col("code")
    heads = (
        pl.when(code < MLP)
        .then(pl.format("Head_{}", code - FIRST_HEAD))
        .otherwise(pl.format("Result_{}", code - FIRST_RESULT))
    )
    return code.replace_strict(CODES_BACK, default=heads, return_dtype=pl.String).alias("variant")


def _distance(name: str) -> tuple[pl.Expr, pl.Expr]:
    return pl.lit(name, dtype=_DISTANCE).alias("distance"), pl.col(name).cast(pl.Float32).alias("value")


def _require_labels(batch: pl.DataFrame) -> None:
    lacking = [name for name in LABELS if name in batch.columns and batch[name].null_count()]
    if lacking:
        raise ResultsError(f"some rows lack {', '.join(lacking)}; the file is damaged or cut off: write it again")


def coded_variants(variants: pl.Series) -> list[pl.Series]:
    """The place of each variant in table order as ``code``, and its ``kind``. Raises ``ResultsError``.

    Each name is looked at once; the column itself is handled as numbers.
    """
    if not isinstance(variants.dtype, pl.Enum):
        names = variants.cast(pl.String)
        variants = names.cast(pl.Enum(names.unique().sort()))
    known, places = variants.dtype.categories, variants.to_physical()  # type: ignore[attr-defined]
    codes = [_code(name) for name in known]
    if None in codes:
        _require_known(variants.unique().cast(pl.String))
    kinds = [name.partition("_")[0] if code is not None else None for name, code in zip(known, codes, strict=True)]
    found = (pl.Series("code", codes, dtype=pl.Int32), pl.Series("kind", kinds, dtype=_KIND))
    return [series.gather(places) for series in found]


def _require_known(names: pl.Series) -> None:
    unknown = sorted(name for name in names if _code(name) is None)
    if unknown:
        shown = ", ".join(repr(name) for name in unknown[:3])
        raise ResultsError(f"unknown variant {shown}; expected Full, Attn, Head_0, Head_1, ...: is the file cut off?")


def _code(variant: str) -> int | None:
    """The place of a variant in table order; None for what is none."""
    if variant in CODES or not re.fullmatch(VARIANT, variant):
        return CODES.get(variant)
    kind, _, head = variant.partition("_")
    return int(head) + (FIRST_HEAD if kind == "Head" else FIRST_RESULT)
