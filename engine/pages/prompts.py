"""The prompts that a page holds: which of them, at which queries, and as what."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import polars as pl

from engine.errors import SelectionError
from engine.figures.grids import Grid, grid_of, require_labels
from engine.figures.sources import PromptId, Source, prompt_ids_of
from engine.pages.packing import packed, packed_size, packed_texts
from engine.tables.table import PROMPT_ID

LONGEST_NAME = 80


def chosen_ids(source: Source, count: int, wanted: Sequence[str] | None) -> tuple[list[PromptId], int]:
    """The ids of the prompts to show, the first ``count`` or those ``wanted``, and how many there are.

    Raises ``SelectionError`` for an id that is not there, and for ids of results that have none.
    """
    ids = prompt_ids_of(source)
    if wanted is None:
        return ids[:count], len(ids)
    by_text = {str(each): each for each in ids}
    if missing := [each for each in wanted if each not in by_text]:
        some = ", ".join(repr(each) for each in list(by_text)[:5]) or "none, the results are those of a single prompt"
        raise SelectionError(f"there is no prompt {missing[0]!r}; the ids are {some}{', ...' if len(ids) > 5 else ''}")
    return [by_text[each] for each in dict.fromkeys(wanted)], len(ids)


def single_prompts(source: Source, ids: Sequence[PromptId]) -> Iterator[tuple[PromptId | None, list[Grid]]]:
    """Of every prompt its id and its grids, one for each query, the last query last."""
    if not source.is_set():
        with source.reading():
            yield None, _grids(source.lazy.collect(), source, None)
        return
    texts = source.prompts()
    known = {} if texts is None else dict(texts.filter(pl.col(PROMPT_ID).is_in(list(ids))).iter_rows())
    with source.reading():
        rows = source.lazy.filter(pl.col(PROMPT_ID).is_in(list(ids))).collect(engine="streaming")
    parts = rows.partition_by(PROMPT_ID, as_dict=True, maintain_order=True)
    for each in ids:
        if (each,) in parts:
            yield each, _grids(parts[each,].drop(PROMPT_ID), source, known.get(each))


def _grids(rows: pl.DataFrame, source: Source, text: str | None) -> list[Grid]:
    origin = dict(source.provenance) if text is None and not source.is_set() else {"prompt": text}
    if "query_position" not in rows.columns or rows.is_empty():
        return [grid_of(rows, provenance=origin)]
    require_labels(rows)
    by_query = rows.partition_by("query_position", as_dict=True)
    return [grid_of(by_query[key], provenance=origin) for key in sorted(by_query)]


def fitting(grids: Sequence[Grid], room: int) -> tuple[list[Grid], int]:
    """The last grids whose numbers take no more than ``room`` bytes, and what they take; none if the last does not."""
    kept, taken = 0, 0
    for grid in reversed(grids):
        size = packed_size(_numbers(grid))
        if taken + size > room:
            break
        kept, taken = kept + 1, taken + size
    return list(grids[len(grids) - kept :]), taken


def as_prompt(prompt_id: PromptId | None, grids: Sequence[Grid]) -> dict[str, Any]:
    """A prompt as the page has it."""
    text = grids[0].text or "".join(case.text for case in grids[-1].cases)
    named = text if prompt_id is None else f"{prompt_id}: {text}"
    return {
        "id": None if prompt_id is None else str(prompt_id),
        "name": named[:LONGEST_NAME],
        "aggregate": False,
        "grids": [as_grid(grid) for grid in grids],
    }


def as_grid(grid: Grid) -> dict[str, Any]:
    """A grid as the page has it: ``numbers`` by metric, layer, case and variant."""
    texts = {"answer": "answer", "top": "top_token_masked"}
    return {
        "effects": grid.effects,
        "layers": list(grid.layers),
        "cases": [
            {"positions": list(c.positions), "text": c.text, "special": c.special, "first": c.positions == (0,)}
            for c in grid.cases
        ],
        "variants": list(grid.variants),
        "metrics": list(grid.metrics),
        "numbers": packed(_numbers(grid)),
        "query": grid.query,
        "queryName": _query_name(grid),
        **{short: packed_texts(grid.texts[name]) for short, name in texts.items() if name in grid.texts},
    }


def _numbers(grid: Grid) -> Any:
    return np.stack([grid.values[metric] for metric in grid.metrics])


def _query_name(grid: Grid) -> str:
    """The position that is read and, where it is hidden somewhere too, its text."""
    text = next((case.text for case in grid.cases if case.positions == (grid.query,)), None)
    return f"{grid.query}" if text is None else f"{grid.query} “{text[:40]}”"
