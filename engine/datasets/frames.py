"""What was measured of a shard, as the frames that its files hold."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from engine.datasets.shards import Shard
from engine.inputs.entries import Entry
from engine.runs.measuring import Found
from engine.tables.table import PROMPT_ID
from engine.text.prompts import Prompt

PROMPT_COLUMNS = (PROMPT_ID, "input_row", "text", "num_tokens")
TAKEN = re.compile(rf"(input_)*({'|'.join(PROMPT_COLUMNS)})")
TABLES = ("impacts", "prompts", "tokens", "rejected")
LONGEST_SHOWN = 1000
MOST_INT64, MOST_EXACT = (1 << 63) - 1, 1 << 53


@dataclass(frozen=True)
class Read:
    """A prompt whose numbers are in a file already."""

    prompt: Prompt


@dataclass(frozen=True)
class Measured:
    """A shard with what became of each of its entries: its impact, or the reason why there is none."""

    shard: Shard
    outcomes: tuple[Found | Read | str, ...]
    seconds: float
    halvings: int

    @property
    def impacts(self) -> list[tuple[Entry, Found | Read]]:
        pairs = zip(self.shard.entries, self.outcomes, strict=True)
        return [(entry, found) for entry, found in pairs if not isinstance(found, str)]

    @property
    def rejected(self) -> list[tuple[Entry, str]]:
        pairs = zip(self.shard.entries, self.outcomes, strict=True)
        return [(entry, found) for entry, found in pairs if isinstance(found, str)]


def frames(measured: Measured) -> dict[str, pl.DataFrame]:
    """The frames of a shard by the names of ``TABLES``, those without rows left out."""
    found = {}
    if impacts := measured.impacts:
        found = {} if measured.shard.before else {"impacts": _impacts(impacts)}
        found |= {"prompts": _prompts(impacts), "tokens": _tokens(impacts)}
    return found | ({"rejected": _rejected(measured.rejected)} if measured.rejected else {})


def ids_in(part: Path) -> list[str]:
    """The prompts of a part, each once, as text."""
    if part.suffix == ".parquet":
        lazy = pl.scan_parquet(part, glob=False, hive_partitioning=False)
    else:
        lazy = pl.scan_csv(part, schema_overrides={PROMPT_ID: pl.String}, glob=False)
    ids = lazy.select(pl.col(PROMPT_ID).cast(pl.String).fill_null("").unique()).collect()
    return ids[PROMPT_ID].to_list()


def empty_frame(table: str) -> pl.DataFrame:
    """A table of a set in which no prompt has a row of it."""
    kinds = (pl.Int64, pl.Int64, pl.String, pl.Int32)
    schemas: dict[str, dict[str, Any]] = {
        "prompts": dict(zip(PROMPT_COLUMNS, kinds, strict=True)),
        "tokens": {PROMPT_ID: pl.Int64, "token_position": pl.Int32, "token_id": pl.Int32, "token": pl.String},
    }
    return _rejected([]) if table == "rejected" else pl.DataFrame(schema=schemas[table])


def _impacts(pairs: list[tuple[Entry, Found | Read]]) -> pl.DataFrame:
    impacts = [impact for _, impact in pairs]
    kind: Any = type(impacts[0])
    frame: pl.DataFrame = kind.tables(impacts, _ids(pairs))
    return frame


def _prompts(pairs: list[tuple[Entry, Found | Read]]) -> pl.DataFrame:
    entries = [entry for entry, _ in pairs]
    known = {
        PROMPT_ID: pl.Series(_ids(pairs)),
        "input_row": pl.Series([entry.row for entry in entries], dtype=pl.Int64),
        "text": pl.Series([entry.text for entry in entries], dtype=pl.String),
        "num_tokens": pl.Series([len(impact.prompt) for _, impact in pairs], dtype=pl.Int32),
    }
    return pl.DataFrame(known | _users_columns([entry.columns for entry in entries]))


def _tokens(pairs: list[tuple[Entry, Found | Read]]) -> pl.DataFrame:
    prompts = [impact.prompt for _, impact in pairs]
    lengths = [len(prompt) for prompt in prompts]
    notes = {"role": pl.String, "is_special": pl.Boolean} if prompts[0].roles else {}
    marks = {"role": "roles", "is_special": "special"}
    more = {
        name: pl.Series(list(chain.from_iterable(getattr(p, marks[name]) for p in prompts)), dtype=kind)
        for name, kind in notes.items()
    }
    return pl.DataFrame(
        {
            PROMPT_ID: pl.Series(_ids(pairs))[np.repeat(np.arange(len(prompts)), lengths)],
            "token_position": np.concatenate([np.arange(length, dtype=np.int32) for length in lengths]),
            "token_id": pl.Series(list(chain.from_iterable(p.token_ids for p in prompts)), dtype=pl.Int32),
            "token": pl.Series(list(chain.from_iterable(p.pieces for p in prompts)), dtype=pl.String),
            **more,
        }
    )


def _rejected(pairs: list[tuple[Entry, str]]) -> pl.DataFrame:
    ids = [entry.prompt_id for entry, _ in pairs]
    numbers = all(isinstance(each, int) for each in ids)
    return pl.DataFrame(
        {
            PROMPT_ID: pl.Series(ids if numbers else _texts(ids), dtype=pl.Int64 if numbers else pl.String),
            "input_row": pl.Series([entry.row for entry, _ in pairs], dtype=pl.Int64),
            "text": pl.Series([_shown(entry.prompt) for entry, _ in pairs], dtype=pl.String),
            "reason": pl.Series([reason for _, reason in pairs], dtype=pl.String),
        }
    )


def _ids(pairs: list[tuple[Entry, Found | Read]]) -> list[Any]:
    """Numbers if all ids are numbers, else texts."""
    ids = [entry.prompt_id for entry, _ in pairs]
    return ids if all(isinstance(each, int) for each in ids) else _texts(ids)


def _users_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, pl.Series]:
    """The columns that came with the prompts; one whose name is taken, or looks as if it had been, gets ``input_``."""
    names = dict.fromkeys(chain.from_iterable(rows))
    return {
        f"input_{name}" if TAKEN.fullmatch(name) else _valid(name): _column([row.get(name) for row in rows])
        for name in names
    }


def _column(values: list[Any]) -> pl.Series:
    """Values of one kind in its own type, whole and other numbers as numbers, anything else as text."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {str}:
        return pl.Series(_texts(values), dtype=pl.String if kinds else pl.Null)
    most = MOST_EXACT if float in kinds else MOST_INT64
    too_large = any(isinstance(value, int) and abs(value) > most for value in values)
    if (len(kinds) == 1 or kinds == {int, float}) and not too_large:
        return pl.Series(values, strict=False, dtype=pl.Float64 if float in kinds else None)
    return pl.Series(_texts(values), dtype=pl.String)


def _texts(values: Sequence[Any]) -> list[str | None]:
    return [None if value is None else _valid(value if isinstance(value, str) else _as_json(value)) for value in values]


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _shown(prompt: object) -> str | None:
    """What was given as a prompt, as text."""
    if prompt is None or isinstance(prompt, str):
        return None if prompt is None else _valid(prompt)
    return _valid(repr(prompt)[:LONGEST_SHOWN])


def _valid(text: str) -> str:
    """Text that files can hold: what is no character is written as its code."""
    return text.encode("utf-8", "backslashreplace").decode()
