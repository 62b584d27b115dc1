"""Two sets of distances beside each other: relative errors, their quantiles, and whether they agree."""

from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Bool, Float

Cells = Float[np.ndarray, "l v site 2"]
LABELS = ["layer", "token_position", "variant"]


@dataclass(frozen=True, kw_only=True)
class Quantiles:
    """Relative errors of many cells."""

    cells: int
    median: float
    p99: float
    maximum: float


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How close two L2 distances must be, for cells above ``floor`` (a share of the baseline vector's size)."""

    floor: float
    rtol: float
    why: str


NAIVE_TOLERANCES = {
    "float32": Tolerance(floor=1e-2, rtol=1e-2, why="the naive way subtracts two nearly equal float32 vectors"),
    "float64": Tolerance(floor=1e-2, rtol=1e-5, why="Hugging Face's RMSNorm stays in float32 in a float64 model"),
    "bfloat16": Tolerance(floor=1e-2, rtol=0.5, why="bfloat16 rounds the baseline to three significant digits"),
}
ORACLE_TOLERANCES = {
    "float32": Tolerance(floor=1e-6, rtol=1e-2, why="what is left is the float32 rounding of the baseline"),
    "float64": Tolerance(floor=1e-6, rtol=1e-6, why="both sides are float64"),
    "bfloat16": Tolerance(floor=1e-2, rtol=0.5, why="the rounding of the baseline to bfloat16 stays"),
}
"""dtype of the measured side -> how close it must come to the naive way, and to float64.

The naive way runs in the same dtype, but in float32 beside bfloat16, where its own answers would be noise.
"""


def cells_of(table: pl.DataFrame, *, like: Cells) -> Cells:
    """The distances of an impact table as an array in the layout of ``like``, NaN where the table is null."""
    columns = [table[name].cast(pl.Float64).fill_null(np.nan) for name in ("l2_distance", "cosine_distance")]
    return np.stack([column.to_numpy() for column in columns], axis=-1).reshape(like.shape)


def same_labels(a: pl.DataFrame, b: pl.DataFrame) -> bool:
    """Whether the rows of two impact tables stand for the same cells in the same order."""
    a, b = (table.select(LABELS).with_columns(pl.col("variant").cast(pl.String)) for table in (a, b))
    return a.equals(b)


def relative_errors(found: Float[np.ndarray, "..."], truth: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """|found - truth| / truth; 0 where both are exactly 0 and NaN where either is undefined."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(found == truth, 0.0, np.abs(found - truth) / np.abs(truth))


def quantiles(errors: Float[np.ndarray, "..."]) -> Quantiles:
    """Median, 99th percentile and maximum of the defined errors; NaN when there are none."""
    kept = errors[~np.isnan(errors)]
    if not kept.size:
        return Quantiles(cells=0, median=np.nan, p99=np.nan, maximum=np.nan)
    middle, high = np.quantile(kept, [0.5, 0.99], method="inverted_cdf")
    return Quantiles(cells=kept.size, median=float(middle), p99=float(high), maximum=float(kept.max()))


def above(cells: Cells, sizes: Float[np.ndarray, "l site"], *, floor: float) -> Bool[np.ndarray, "l v site"]:
    """Cells whose L2 distance is more than ``floor`` times the size of the baseline vector."""
    return cells[..., 0] > floor * sizes[:, None]


def agreement(
    found: Cells, expected: Cells, *, sizes: Float[np.ndarray, "l site"], tolerance: Tolerance
) -> tuple[Quantiles, bool]:
    """Errors of the L2 distances that are large enough to compare, and whether all are within the tolerance.

    Two tables with undefined cells in different places do not agree, nor do two without a cell to compare.
    """
    chosen = above(expected, sizes, floor=tolerance.floor)
    errors = quantiles(relative_errors(found[..., 0], expected[..., 0])[chosen])
    same_gaps = np.array_equal(np.isnan(found[..., 0]), np.isnan(expected[..., 0]))
    return errors, bool(same_gaps and errors.cells > 0 and errors.maximum <= tolerance.rtol)
