"""Where the results of one prompt come from: a frame, a results file, or a dataset's folder."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from engine.datasets.folder import Folder
from engine.datasets.reading import dataset_provenance, read_results
from engine.errors import ResultsError, SelectionError
from engine.files import FilePath
from engine.tables.columns import unfit
from engine.tables.results import read_provenance, reading, scan_table
from engine.tables.table import PROMPT_ID

Results = pl.DataFrame | pl.LazyFrame | FilePath
PromptId = int | str
SHOWN_IDS = 5


@dataclass(frozen=True)
class Source:
    """Results that are not read yet: ``lazy`` rows, what produced them, and the path if they have one."""

    lazy: pl.LazyFrame
    provenance: Mapping[str, Any]
    path: Path | None = None

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Inside, what is wrong with the file becomes a ``ResultsError``."""
        with reading(self.path) if self.path else nullcontext():
            yield

    @property
    def is_dataset(self) -> bool:
        """Whether the rows are those of a folder."""
        return self.path is not None and self.path.is_dir()

    def is_set(self) -> bool:
        """Whether a column says which prompt a row belongs to."""
        return PROMPT_ID in self.lazy.collect_schema()

    def prompts(self) -> pl.DataFrame | None:
        """A dataset's ``prompt_id`` and ``text``; None where there is no such table (a file, an unfinished dataset)."""
        for form, scan in (("parquet", pl.scan_parquet), ("csv", pl.scan_csv)):
            place = Folder(self.path, form).table("prompts") if self.is_dataset and self.path else None
            if place and place.is_file():
                kind = self.lazy.collect_schema()[PROMPT_ID]
                with reading(place):
                    return scan(place, glob=False).select(pl.col(PROMPT_ID).cast(kind), "text").collect()
        return None


def source_of(results: Results, *, provenance: Mapping[str, Any] | None = None) -> Source:
    """``results`` opened: a frame in memory, a results file, or the folder of a dataset (as far as it is complete).

    Raises ``ResultsError`` for what is neither an impact nor an effects table.
    """
    if isinstance(results, pl.DataFrame | pl.LazyFrame):
        lazy = results.lazy()
        if reason := unfit(lazy.collect_schema()):
            raise ResultsError(f"the table{reason}")
        return Source(lazy, provenance or {})
    path = Path(results)
    if path.is_dir():
        return Source(read_results(path, partial=True), provenance or dataset_provenance(path), path)
    return Source(scan_table(path), provenance or read_provenance(path) or {}, path)


def prompt_ids_of(source: Source) -> list[PromptId]:
    """The ids of the prompts in the order of the results; none where the table is that of one prompt."""
    if not source.is_set():
        return []
    if (prompts := source.prompts()) is not None:
        return prompts[PROMPT_ID].to_list()
    with source.reading():
        ids = source.lazy.select(pl.col(PROMPT_ID).unique(maintain_order=True))
        return ids.collect(engine="streaming")[PROMPT_ID].to_list()


def rows_of(source: Source, prompt_id: PromptId | None) -> tuple[pl.LazyFrame, PromptId | None]:
    """The rows of one prompt, and its id as the table has it; ``None`` chooses the only one there is.

    Raises ``SelectionError`` for an id that is not there, or where a choice is needed.
    """
    if not source.is_set():
        if prompt_id is not None:
            raise SelectionError("the table is that of a single prompt and has no ids; leave --prompt-id out")
        return source.lazy, None
    ids = prompt_ids_of(source)
    if prompt_id is None and len(ids) == 1:
        return source.lazy, ids[0]
    found = next((each for each in ids if str(each) == str(prompt_id)), None) if prompt_id is not None else None
    if found is None:
        problem = f"there is no prompt {str(prompt_id)!r}" if prompt_id is not None else "a figure shows one prompt"
        some = ", ".join(map(str, ids[:SHOWN_IDS])) + (", ..." if len(ids) > SHOWN_IDS else "")
        raise SelectionError(f"{problem}; choose one of {len(ids):,} with --prompt-id: {some or 'none has results'}")
    return source.lazy.filter(pl.col(PROMPT_ID) == found), found


def text_of(source: Source, prompt_id: PromptId | None) -> str | None:
    """The prompt's text where the results tell it."""
    if source.is_dataset:
        prompts = source.prompts()
        found = [] if prompts is None else prompts.filter(pl.col(PROMPT_ID) == prompt_id)["text"].to_list()
        return found[0] if found else None
    text = source.provenance.get("prompt")
    return text if isinstance(text, str) else None
