"""The impact table: one row per layer, masked token and variant.

``IMPACT_SCHEMA`` is the one place that names the columns and their order. The table never sees weights or text models:
it is built from an array of distances and the labels of its axes.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import chain

import numpy as np
import polars as pl
from jaxtyping import Float, Int

IMPACT_SCHEMA: dict[str, type[pl.DataType]] = {
    "layer": pl.Int32,
    "token_masked": pl.String,
    "token_position": pl.Int32,
    "variant": pl.Enum,
    "l2_distance": pl.Float32,
    "cosine_distance": pl.Float32,
}
IMPACT_COLUMNS = tuple(IMPACT_SCHEMA)
LABELS: dict[str, type[pl.DataType]] = {
    "query_position": pl.Int32,
    "masked_positions": pl.String,
    "token_id": pl.Int32,
    "is_special": pl.Boolean,
}
"""Columns behind the others where they were asked for: what is read and hidden."""
PROMPT_ID = "prompt_id"
"""The column in front where a table holds several prompts."""


def variant_names(num_heads: int) -> list[str]:
    """The variants of a layer in table order: Full, Attn, Head_0, Head_1, ..."""
    return ["Full", "Attn", *(f"Head_{head}" for head in range(num_heads))]


def build_table(
    distances: Float[np.ndarray, "l v site 2"],
    *,
    layers: Sequence[int],
    positions: Sequence[int],
    pieces: Sequence[str],
    variants: Sequence[str],
) -> pl.DataFrame:
    """Lay the distances of one prompt out as the long table, sorted by layer, position and variant.

    ``distances`` holds (L2, cosine) in its last axis; NaN marks an undefined cell and becomes null. ``layers``,
    ``positions`` with their ``pieces`` of text, and ``variants`` label the first three axes.
    """
    one = build_tables(
        [distances], prompt_ids=[0], layers=layers, positions=[positions], pieces=[pieces], variants=variants
    )
    return one.drop(PROMPT_ID)


def build_tables(
    distances: Sequence[Float[np.ndarray, "l _ site 2"]],
    *,
    prompt_ids: Sequence[int] | Sequence[str],
    layers: Sequence[int],
    positions: Sequence[Sequence[int]],
    pieces: Sequence[Sequence[str]],
    variants: Sequence[str],
    labels: Mapping[str, Sequence[Sequence[object]]] | None = None,
    cells: Mapping[str, Sequence[Float[np.ndarray, "l _ site"]]] | None = None,
) -> pl.DataFrame:
    """The tables of several prompts one after the other, with ``prompt_id`` in front; see ``build_table``.

    ``labels`` (by the names of ``LABELS``) are more columns with a value for each position, ``cells`` with one for each
    cell. Every column is laid out for all prompts at once: a column costs more to make than a short prompt's cells.
    """
    axes = cache(lambda count: _axes((len(layers), count, len(variants))))
    layer, token, variant = (np.concatenate(axis) for axis in zip(*(axes(len(p)) for p in positions), strict=True))
    rows = [each[..., 0].size for each in distances]
    token += np.repeat(np.cumsum([0, *map(len, positions[:-1])]), rows)
    numbers = np.concatenate([each.reshape(-1, 2) for each in distances])
    kind = pl.Enum(list(variants))
    frame = pl.DataFrame(
        {
            PROMPT_ID: pl.Series(prompt_ids)[np.repeat(np.arange(len(rows)), rows)],
            "layer": np.asarray(layers, np.int32)[layer],
            "token_masked": pl.Series(list(chain.from_iterable(pieces)), dtype=pl.String)[token],
            "token_position": np.fromiter(chain.from_iterable(positions), np.int32)[token],
            "variant": pl.Series(list(variants), dtype=kind)[variant],
            "l2_distance": pl.Series(numbers[:, 0], nan_to_null=True),
            "cosine_distance": pl.Series(numbers[:, 1], nan_to_null=True),
        }
    )
    more = {name: pl.Series(list(chain(*of)), dtype=LABELS[name])[token] for name, of in (labels or {}).items()}
    more |= {n: pl.Series(np.concatenate([x.ravel() for x in of]), nan_to_null=True) for n, of in (cells or {}).items()}
    return frame.with_columns(**more) if more else frame


def _axes(shape: tuple[int, int, int]) -> tuple[Int[np.ndarray, " rows"], ...]:
    """The index along each axis of every cell, in row order."""
    return tuple(index.ravel() for index in np.indices(shape))
