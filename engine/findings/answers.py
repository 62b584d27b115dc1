"""What stands out in an effects table: tokens, layers and single effects, by the answer's change and by divergence.

The table is read in batches, once, so memory holds a batch and one entry per token, not the file.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import polars as pl

from engine.errors import ResultsError
from engine.findings.cells import BATCH_ROWS
from engine.findings.sums import Sum, best, leading, moments, pooled, summed
from engine.tables.batches import batches

MEASURES = {"answer_logprob_change": "change of the answer's log-probability", "kl_divergence": "KL divergence"}
KIND = "Answer"
SHOWN = ("layer", "answer", "answer_logprob_change", "kl_divergence", "top_token_masked")


@dataclass(frozen=True, kw_only=True)
class AnswerAnalysis:
    """The findings in an effects table, in nats.

    ``counts``: ``rows``, ``skipped_rows``, ``undefined`` (rows of null cells), ``layers`` and ``prompts`` (None where
    no column tells). ``tokens`` and ``layers`` have ``distance`` (a name of ``MEASURES``) and ``rank`` in front and
    the mean of the absolute values; ``effects`` are the rows with the largest ones. A layer is null where all are cut.
    """

    counts: dict[str, int | None]
    skip_first: bool
    tokens: pl.DataFrame
    layers: pl.DataFrame
    effects: pl.DataFrame


def analyze_answers(
    lazy: pl.LazyFrame, *, top: int = 10, skip_first: bool = False, num_prompts: int | None = None
) -> AnswerAnalysis:
    """Summarise the effects table ``lazy``; arguments as of ``analysis.analyze``. Raises ``ResultsError``."""
    names = lazy.collect_schema().names()
    more = [name for name in ("masked_positions", "prompt_id") if name in names]
    token, query = ["token_position", "token_masked", *more], [name for name in ("query_position",) if name in names]
    kept = lazy.filter(pl.col("token_position").ne_missing(0)) if skip_first else lazy
    by_token = ["distance", "kind", *token]
    sums = {
        "layers": moments(["distance", "kind", "layer"]),
        "tokens": leading(by_token, token, top=top) if num_prompts is not None else moments(by_token),
        "effects": _largest([*token, *query], top=top),
    }
    found = summed(_batches(kept, [*token, *query]), sums)
    _require_defined(found)
    layers = found["layers"]
    rows = layers.filter(distance="kl_divergence")
    if num_prompts is None and "prompt_id" in names:
        num_prompts = found["tokens"]["prompt_id"].n_unique()
    return AnswerAnalysis(
        counts={
            "rows": int(rows["rows"].sum()),
            "skipped_rows": _count(lazy) - _count(kept) if skip_first else 0,
            "undefined": int((rows["rows"] - rows["count"]).sum()),
            "layers": layers["layer"].n_unique(),
            "prompts": num_prompts,
        },
        skip_first=skip_first,
        tokens=_ranked(pooled(found["tokens"], by_token), token, top=top),
        layers=_ranked(layers, ["layer"], top=top),
        effects=_ranked(found["effects"], [*token, *query, *SHOWN], top=top, score="value"),
    )


def _batches(lazy: pl.LazyFrame, labels: Sequence[str]) -> Iterator[pl.DataFrame]:
    """The rows once for each measure, its absolute value as ``value``."""
    columns = lazy.select(*dict.fromkeys([*labels, *SHOWN]))
    for batch in batches(columns, rows=BATCH_ROWS):
        yield pl.concat(
            batch.with_columns(distance=pl.lit(name), kind=pl.lit(KIND), value=pl.col(name).cast(pl.Float64).abs())
            for name in MEASURES
        )


def _largest(labels: Sequence[str], *, top: int) -> Sum:
    """The rows with the largest values of each measure."""
    by = ["value", "layer", *labels]

    def take(cells: pl.LazyFrame) -> pl.LazyFrame:
        groups = [cells.filter(distance=name).drop_nulls("value") for name in MEASURES]
        return pl.concat(group.top_k(top, by=by, reverse=[False, *(True for _ in by[1:])]) for group in groups)

    return Sum(take, lambda parts: take(parts.lazy()).collect())


def _require_defined(found: dict[str, pl.DataFrame]) -> None:
    if not found or not found["layers"]["count"].sum():
        raise ResultsError("no effect is defined; give a file or dataset with effects, or leave --skip-first out")
    if found["layers"]["infinite"].sum():
        raise ResultsError("some effects are NaN or infinite; undefined cells must be null: measure again")


def _ranked(frame: pl.DataFrame, labels: Sequence[str], *, top: int, score: str = "mean") -> pl.DataFrame:
    ties = [name for name in labels if name not in MEASURES]
    leaders = best(frame.lazy(), score, ties, top=top).collect()
    rank = pl.int_range(1, pl.len() + 1).over("distance").alias("rank")
    return leaders.select("distance", rank, *dict.fromkeys([*labels, score]), pl.col("^count$"))


def _count(lazy: pl.LazyFrame) -> int:
    return int(lazy.select(pl.len()).collect(engine="streaming").item())
