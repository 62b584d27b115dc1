"""The impact table: one row per layer, masked token and variant.

``IMPACT_SCHEMA`` is the one place that names the columns and their order. The table never sees weights or text models:
it is built from an array of distances and the labels of its axes.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl
from jaxtyping import Float, Shaped

IMPACT_SCHEMA: dict[str, type[pl.DataType]] = {
    "layer": pl.Int32,
    "token_masked": pl.String,
    "token_position": pl.Int32,
    "variant": pl.Enum,
    "l2_distance": pl.Float32,
    "cosine_distance": pl.Float32,
}
IMPACT_COLUMNS = tuple(IMPACT_SCHEMA)


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
    """Lay the distances out as the long table, sorted by layer, position and variant.

    ``distances`` holds (L2, cosine) in its last axis; NaN marks an undefined cell and becomes null. ``layers``,
    ``positions`` with their ``pieces`` of text, and ``variants`` label the first three axes.
    """
    shape = distances.shape[:3]
    kind = pl.Enum(list(variants))
    codes = _along(np.arange(shape[2]), shape, axis=2)
    return pl.DataFrame(
        {
            "layer": _along(np.asarray(layers, np.int32), shape, axis=0),
            "token_masked": pl.Series(list(pieces), dtype=pl.String)[_along(np.arange(shape[1]), shape, axis=1)],
            "token_position": _along(np.asarray(positions, np.int32), shape, axis=1),
            "variant": pl.Series(list(variants), dtype=kind)[codes],
            "l2_distance": _cells(distances[..., 0]),
            "cosine_distance": _cells(distances[..., 1]),
        }
    )


def _along(labels: Shaped[np.ndarray, " n"], shape: tuple[int, ...], *, axis: int) -> Shaped[np.ndarray, " rows"]:
    """Labels of one axis repeated for every cell, in row order."""
    aligned = np.expand_dims(labels, tuple(i for i in range(len(shape)) if i != axis))
    return np.broadcast_to(aligned, shape).ravel()


def _cells(values: Float[np.ndarray, "l v site"]) -> pl.Series:
    return pl.Series(values.ravel(), nan_to_null=True)
