"""Two tables of one question, held beside each other: the engine's and the slow twin's."""

from collections.abc import Mapping

import numpy as np
import polars as pl
from naive_questions import SIZE

# column -> (rtol, atol, share of the baseline vector, why)
FLOAT64 = {
    "l2_distance": (1e-6, 0.0, 1e-11, "the twin subtracts two float64 vectors that went through all layers"),
    "cosine_distance": (1e-6, 1e-11, 0.0, "1 - cos in float64 resolves nothing below"),
    "relative_l2": (1e-6, 1e-11, 0.0, "as the distance"),
    "attention_mass": (1e-6, 1e-9, 0.0, "a column may be float32"),
    "kl_divergence": (1e-6, 1e-9, 0.0, "differences of log-probabilities of some tens"),
    "answer_logprob": (1e-6, 1e-9, 0.0, "the same"),
    "answer_logprob_masked": (1e-6, 1e-9, 0.0, "the same"),
    "answer_logprob_change": (1e-6, 1e-9, 0.0, "the same"),
}
FLOAT32 = {
    "l2_distance": (1e-3, 0.0, 1e-5, "rounding of float32 through all layers"),
    "cosine_distance": (5e-3, 1e-6, 0.0, "a head that loses nearly all it had keeps few digits"),
    "relative_l2": (1e-3, 1e-5, 0.0, "the same"),
    "attention_mass": (0.0, 1e-5, 0.0, "the same"),
    "kl_divergence": (1e-6, 1e-5, 0.0, "what a log-probability may be off by"),
    "answer_logprob": (0.0, 1e-5, 0.0, "the same"),
    "answer_logprob_masked": (1e-6, 1e-5, 0.0, "the same"),
    "answer_logprob_change": (1e-6, 1e-5, 0.0, "the same"),
}
LAYER_COLUMNS = ["layer", "token_masked", "token_position", "variant", "l2_distance", "cosine_distance"]
OUTPUT_COLUMNS = [
    *("layer", "token_masked", "token_position", "l2_distance", "cosine_distance", "kl_divergence"),
    *("answer", "answer_logprob", "answer_logprob_masked", "answer_logprob_change", "top_token_masked"),
]


def assert_same(ours: pl.DataFrame, theirs: pl.DataFrame, tolerances: Mapping[str, tuple] = FLOAT64) -> None:
    """Every column of the twin (``theirs``) equals the engine's: labels and nulls exactly, numbers within tolerance."""
    expected = LAYER_COLUMNS if "variant" in theirs.columns else OUTPUT_COLUMNS
    assert [name for name in ours.columns if name in expected] == expected
    assert set(ours.columns) == set(theirs.columns) - {SIZE}
    if "query_position" in theirs.columns:
        assert ours.columns.index("query_position") == len(expected)
    for name in theirs.columns:
        if name != SIZE and name not in tolerances:
            column = ours[name].cast(pl.String) if name == "variant" else ours[name]
            assert column.to_list() == theirs[name].to_list(), name
    for name in set(tolerances) & set(theirs.columns):
        assert_near(name, ours, theirs, tolerances[name])


def assert_near(name: str, ours: pl.DataFrame, theirs: pl.DataFrame, tolerance: tuple) -> None:
    rtol, atol, share, why = tolerance
    assert ours[name].is_null().to_list() == theirs[name].is_null().to_list(), f"{name}: undefined cells differ"
    found, expected = (table[name].cast(pl.Float64).fill_null(0.0).to_numpy() for table in (ours, theirs))
    excess = np.abs(found - expected) - (rtol * np.abs(expected) + atol + share * theirs[SIZE].to_numpy())
    worst = int(excess.argmax())
    row = {key: value for key, value in theirs.row(worst, named=True).items() if key in (*LAYER_COLUMNS[:4], name)}
    assert excess[worst] <= 0, f"{name}: {found[worst]!r} is not {expected[worst]!r} ({why}) in {row}"
