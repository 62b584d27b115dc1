"""A results table of one prompt as arrays: layers x cases x variants, the numbers that figures and pages show."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from engine.errors import ResultsError, SelectionError
from engine.figures.sources import PromptId, Results, Source, rows_of, source_of, text_of
from engine.tables.columns import CELLS, NOT_FINITE, UNLABELLED, is_effects, unlabelled

IMPACT_METRICS = ("cosine_distance", "l2_distance")
EFFECT_METRICS = (
    *("answer_logprob_change", "kl_divergence", "cosine_distance", "l2_distance", "answer_logprob_masked"),
    "answer_logprob",
)
EFFECT = "Answer"
"""The one variant of an effects table."""
CASE = ("token_position", "token_masked", "masked_positions", "is_special")
SPECIAL = re.compile(r"<(?!0x)[^<>\s]+>")
"""How special tokens look where no column tells: ``<s>``, ``<|im_start|>``; bytes (``<0xE2>``) are none."""


@dataclass(frozen=True)
class Case:
    """What is hidden together: its ``positions`` in the prompt and its ``text``, as the table has it."""

    positions: tuple[int, ...]
    text: str
    special: bool


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What a table says of one prompt, read at one query position.

    ``layers`` (None: all layers cut together), ``cases`` in the order of the prompt and ``variants`` (of effects, the
    one ``EFFECT``) label the axes of every array in ``values``, by metric, the default metric first; NaN where a cell
    is null or has no row. ``texts`` are ``answer`` and ``top_token_masked`` of effects, by layer and case. ``query`` is
    None where the table has no such column, ``queries`` are what could be chosen. ``text`` is the prompt's, if known.
    """

    effects: bool
    layers: tuple[int | None, ...]
    cases: tuple[Case, ...]
    variants: tuple[str, ...]
    values: Mapping[str, Float[np.ndarray, "layer case variant"]]
    texts: Mapping[str, tuple[tuple[str | None, ...], ...]]
    query: int | None
    queries: tuple[int, ...]
    prompt_id: PromptId | None
    text: str | None
    provenance: Mapping[str, Any]

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of ``values``, the default first."""
        return tuple(self.values)

    @cached_property
    def heads(self) -> dict[str, dict[int, int]]:
        """Of every kind of variant with heads (``Head``, ``Result``): head number -> place in ``variants``."""
        found: dict[str, dict[int, int]] = {}
        for place, name in enumerate(self.variants):
            if match := re.fullmatch(r"(Head|Result)_(\d+)", name):
                found.setdefault(match[1], {})[int(match[2])] = place
        return {kind: dict(sorted(places.items())) for kind, places in found.items()}


def grid_of(
    results: Results | Source,
    prompt_id: PromptId | None = None,
    query: int | None = None,
    *,
    provenance: Mapping[str, Any] | None = None,
) -> Grid:
    """What ``results`` (a frame, a file, a dataset's folder) say of one prompt at one query position (default: last).

    ``provenance`` says what produced a frame. Raises ``SelectionError`` for a prompt or query that is not there, or
    where several prompts leave the choice open; ``ResultsError`` for what is no table of results, or has no rows.
    """
    source = results if isinstance(results, Source) else source_of(results, provenance=provenance)
    lazy, found = rows_of(source, prompt_id)
    with source.reading():
        read = lazy.collect()
    require_labels(read)
    rows, queries = _at_query(read, query)
    if rows.is_empty():
        raise ResultsError("the table has no rows; measure at least one layer and token")
    return _grid(rows, queries, source, found)


def require_labels(rows: pl.DataFrame) -> None:
    """Raise ``ResultsError`` for rows that do not say which cell they are."""
    if rows.select(unlabelled(rows.columns).any()).item():
        raise ResultsError(UNLABELLED)


def _at_query(rows: pl.DataFrame, query: int | None) -> tuple[pl.DataFrame, tuple[int, ...]]:
    """The rows of one query position, and the positions that there are."""
    if "query_position" not in rows.columns:
        if query is not None:
            raise SelectionError("the table was read at one position only; leave --query out")
        return rows, ()
    queries = tuple(rows["query_position"].drop_nulls().unique().sort())
    chosen = query if query is not None else max(queries, default=0)
    if queries and chosen not in queries:
        raise SelectionError(f"query position {chosen} is not in the table; there are: {_some(queries)}")
    return rows.filter(pl.col("query_position") == chosen), queries


def _grid(rows: pl.DataFrame, queries: tuple[int, ...], source: Source, prompt_id: PromptId | None) -> Grid:
    effects = is_effects(rows.columns)
    labels = [name for name in CASE if name in rows.columns]
    names = [name for name in labels if name != "is_special"]
    layers = rows["layer"].unique().sort(nulls_last=True)
    cases = rows.select(labels).unique(names, keep="first", maintain_order=True)
    cases = cases.sort("token_position", maintain_order=True)
    rows = rows.with_columns(variant=pl.lit(EFFECT) if effects else pl.col("variant").cast(pl.String))
    variants = rows["variant"].unique(maintain_order=True)
    places = (
        _places(rows, layers.to_frame("layer")),
        _places(rows, cases.select(names)),
        _places(rows, variants.to_frame("variant")),
    )
    shape = (len(layers), len(cases), len(variants))
    _require_single(places, shape)
    metrics = [m for m in (EFFECT_METRICS if effects else (*IMPACT_METRICS, *CELLS)) if m in rows.columns]
    texts = ("answer", "top_token_masked") if effects else ()
    return Grid(
        effects=effects,
        layers=tuple(layers),
        cases=tuple(_case(row) for row in cases.iter_rows(named=True)),
        variants=tuple(variants),
        values={metric: _filled(rows[metric], places, shape) for metric in metrics},
        texts={name: _texts(rows[name], places, shape) for name in texts},
        query=rows["query_position"][0] if queries else None,
        queries=queries,
        prompt_id=prompt_id,
        text=text_of(source, prompt_id),
        provenance=dict(source.provenance),
    )


def _places(rows: pl.DataFrame, axis: pl.DataFrame) -> Int[np.ndarray, " row"]:
    """Where on an axis every row lies."""
    numbered = axis.with_row_index("place")
    joined = rows.select(axis.columns).join(
        numbered, on=axis.columns, how="left", nulls_equal=True, maintain_order="left"
    )
    return joined["place"].to_numpy().astype(np.int64)


def _require_single(places: Sequence[Int[np.ndarray, " row"]], shape: tuple[int, ...]) -> None:
    cells = np.ravel_multi_index(tuple(places), shape)
    if len(np.unique(cells)) < len(cells):
        raise ResultsError(
            "several rows stand for the same layer, token and variant; give the table of one run, or one with prompt_id"
        )


def _case(row: Mapping[str, Any]) -> Case:
    text, group = row["token_masked"] or "", row.get("masked_positions")
    positions = tuple(int(each) for each in str(group).split("+")) if group else (int(row["token_position"]),)
    special = row.get("is_special")
    return Case(positions, text, bool(SPECIAL.fullmatch(text)) if special is None else bool(special))


def _filled(
    column: pl.Series, places: Sequence[Int[np.ndarray, " row"]], shape: tuple[int, ...]
) -> Float[np.ndarray, "layer case variant"]:
    """The numbers of a column in their places, NaN elsewhere."""
    column = column.cast(pl.Float64 if column.dtype == pl.Float64 else pl.Float32)
    if not column.is_finite().all():
        raise ResultsError(NOT_FINITE)
    numbers = column.to_numpy()
    found = np.full(shape, np.nan, numbers.dtype)
    found[tuple(places)] = numbers
    return found


def _texts(
    column: pl.Series, places: Sequence[Int[np.ndarray, " row"]], shape: tuple[int, ...]
) -> tuple[tuple[str | None, ...], ...]:
    found = np.full(shape[:2], None, object)
    found[tuple(places[:2])] = column.to_list()
    return tuple(tuple(row) for row in found)


def _some(positions: Sequence[int]) -> str:
    shown = ", ".join(map(str, positions[:12]))
    return f"{shown}, ..., {positions[-1]}" if len(positions) > 12 else shown
