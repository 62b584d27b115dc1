"""The effects table: one row per window of layers and case, with what became of the model's answer."""

from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np
import polars as pl
from jaxtyping import Float

from engine.tables.table import LABELS, PROMPT_ID

EFFECT_SCHEMA: dict[str, type[pl.DataType]] = {
    "layer": pl.Int32,
    "token_masked": pl.String,
    "token_position": pl.Int32,
    "l2_distance": pl.Float32,
    "cosine_distance": pl.Float32,
    "kl_divergence": pl.Float32,
    "answer": pl.String,
    "answer_logprob": pl.Float32,
    "answer_logprob_masked": pl.Float32,
    "answer_logprob_change": pl.Float32,
    "top_token_masked": pl.String,
}
EFFECT_COLUMNS = tuple(EFFECT_SCHEMA)


def build_effects(
    numbers: Mapping[str, Sequence[Float[np.ndarray, "l _"]]],
    *,
    prompt_ids: Sequence[int] | Sequence[str],
    layers: Sequence[int | None],
    positions: Sequence[Sequence[int]],
    pieces: Sequence[Sequence[str]],
    labels: Mapping[str, Sequence[Sequence[object]]],
    answers: Sequence[Sequence[str]],
    top_tokens: Sequence[Sequence[Sequence[str | None]]],
) -> pl.DataFrame:
    """Lay the effects of several prompts out as one long table, sorted by prompt, layer and case.

    ``numbers`` are the columns of numbers by name; NaN marks an undefined cell and becomes null. ``layers`` is None
    where all layers are cut together. ``labels`` are more columns with a value for each case.
    """
    counts = [len(p) for p in positions]
    case = np.concatenate([np.tile(np.arange(n), len(layers)) + start for n, start in _starts(counts)])
    layer = np.concatenate([np.repeat(np.arange(len(layers)), n) for n in counts])
    rows = np.multiply(counts, len(layers))

    def of_case(values: Sequence[Sequence[object]], kind: type[pl.DataType]) -> pl.Series:
        return pl.Series(list(chain.from_iterable(values)), dtype=kind)[case]

    columns = {
        "layer": pl.Series(list(layers), dtype=pl.Int32)[layer],
        "token_masked": of_case(pieces, pl.String),
        "token_position": of_case(positions, pl.Int32),
        "answer": of_case(answers, pl.String),
        "top_token_masked": pl.Series(list(chain.from_iterable(chain.from_iterable(top_tokens))), dtype=pl.String),
        **{name: of_case(values, LABELS[name]) for name, values in labels.items()},
        **{name: pl.Series(np.concatenate([x.ravel() for x in xs]), nan_to_null=True) for name, xs in numbers.items()},
    }
    order = [*EFFECT_COLUMNS, *labels, *(name for name in numbers if name not in EFFECT_SCHEMA)]
    ids = pl.Series(prompt_ids)[np.repeat(np.arange(len(counts)), rows)]
    return pl.DataFrame({PROMPT_ID: ids, **{name: columns[name] for name in order}})


def _starts(counts: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(counts, np.cumsum([0, *counts[:-1]]).tolist(), strict=True))
