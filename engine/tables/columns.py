"""The columns that a results file may have: which kind of table they make, and their types where text has none."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from engine.tables.effects import EFFECT_SCHEMA
from engine.tables.table import IMPACT_SCHEMA, LABELS, PROMPT_ID

CELLS: dict[str, type[pl.DataType]] = {"attention_mass": pl.Float32, "relative_l2": pl.Float32}
TYPES = {
    name: pl.String if kind is pl.Enum else kind
    for name, kind in (IMPACT_SCHEMA | EFFECT_SCHEMA | LABELS | CELLS).items()
}
"""How text is read. Numbers as Float32, or their digits would not give back the float32 that was written."""
CSV_TYPES = TYPES | {PROMPT_ID: pl.String}
NEVER_NULL = ("token_masked", "answer")
"""Texts that may be empty, which CSV cannot tell from null."""
ASKED_FOR: dict[str, type[pl.DataType]] = LABELS | CELLS
"""Columns that a table has where they were asked for."""
QUERY, GROUP = "query_position", "masked_positions"
VARIANT = r"(?:Full|Attn|MLP|Resid|(?:Head|Result)_(?:0|[1-9][0-9]{0,5}))"
POSITIONS = r"[0-9]{1,9}(?:\+[0-9]{1,9})*"
UNLABELLED = "some rows lack a label, or have one that no run gives; the file was damaged or changed: write it again"
NOT_FINITE = "some values are NaN or infinite; undefined cells must be null: measure again"


def is_effects(names: Sequence[str]) -> bool:
    """Whether these columns are those of an effects table, and not of an impact table."""
    return "variant" not in names and "answer_logprob" in names


def schema_of(names: Sequence[str]) -> dict[str, type[pl.DataType]]:
    """What a table with these columns must have."""
    return EFFECT_SCHEMA if is_effects(names) else IMPACT_SCHEMA


def types_of(names: Sequence[str]) -> dict[str, type[pl.DataType]]:
    """The types of those columns that are known here."""
    return {name: TYPES[name] for name in names if name in TYPES}


def refilled(lazy: pl.LazyFrame) -> pl.LazyFrame:
    """A table read from CSV, with empty texts where there can be no null."""
    texts = [name for name in NEVER_NULL if name in lazy.collect_schema()]
    return lazy.with_columns(pl.col(texts).fill_null(""))


def unfit(schema: Mapping[str, Any]) -> str | None:
    """Why a table with this schema is no table of results, in words; None where each column can stand for its own."""
    expected = schema_of(list(schema))
    if missing := [name for name in expected if name not in schema]:
        kind = "effects" if is_effects(list(schema)) else "impact"
        return f" is not an {kind} table: it lacks {', '.join(missing)}; its columns are: {', '.join(schema)[:200]}"
    for name, wanted in expected.items():
        found, nulls = schema[name], expected is EFFECT_SCHEMA and schema[name] == pl.Null
        if not (nulls or _accepted(wanted, found)):
            return f": column {name} is {found}, expected {_named(wanted)}; convert it first"
    for name, wanted in ASKED_FOR.items():
        if name in schema and schema[name] != pl.Null and not _accepted(wanted, schema[name]):
            return f": column {name} is {schema[name]}, expected {_named(wanted)}; convert it first"
    if PROMPT_ID in schema and not (_accepted(pl.String, schema[PROMPT_ID]) or schema[PROMPT_ID].is_integer()):
        return f": column {PROMPT_ID} is {schema[PROMPT_ID]}, expected text or integer; convert it first"
    return None


def unlabelled(names: Sequence[str]) -> pl.Expr:
    """True for a row that lacks a label, or has one that stands for nothing in a model; ``names`` are the columns."""
    fits = [pl.col("token_position") >= 0, pl.col("token_masked").is_not_null(), pl.col("layer").fill_null(0) >= 0]
    if not is_effects(names):
        fits += [pl.col("layer").is_not_null(), pl.col("variant").cast(pl.String).str.contains(f"^{VARIANT}$")]
    group = pl.col(GROUP).cast(pl.String).str.contains(f"^{POSITIONS}$")
    fits += [fit for name, fit in ((QUERY, pl.col(QUERY) >= 0), (GROUP, group)) if name in names]
    fits += [pl.col(PROMPT_ID).is_not_null()] if PROMPT_ID in names else []
    return ~pl.all_horizontal(fit.fill_null(False) for fit in fits)


def _named(kind: Any) -> str:
    """A type, as an error calls it."""
    names = {pl.String: "text", pl.Enum: "text", pl.Float32: "a number", pl.Boolean: "true or false"}
    return names.get(kind, "integer")


def _accepted(kind: type[pl.DataType], found: Any) -> bool:
    """Whether a column can stand for that of ``kind`` with nothing lost."""
    if kind in (pl.String, pl.Enum):
        return found in (pl.String, pl.Enum, pl.Categorical)
    if kind is pl.Boolean:
        return bool(found == pl.Boolean)
    return found.is_numeric() or found == pl.Null if kind is pl.Float32 else found.is_integer()
