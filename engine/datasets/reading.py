"""A dataset as lazy frames: any number of parts, none of them loaded."""

from pathlib import Path
from typing import Any

import polars as pl

from engine.datasets.folder import Folder
from engine.datasets.manifest import COMPLETE, IDS, MANIFEST, QUESTION, Manifest, read_manifest
from engine.errors import ResultsError
from engine.files import FilePath, one_line, shown
from engine.tables.columns import CSV_TYPES, TYPES, refilled, unfit
from engine.tables.effects import EFFECT_COLUMNS
from engine.tables.results import reading
from engine.tables.table import IMPACT_COLUMNS, PROMPT_ID

VERIFIED_BYTES = 1 << 31
"""Parts of a dataset whose bytes are compared whenever it is read."""


def read_results(folder: FilePath, *, partial: bool = False, verify: bool | None = None) -> pl.LazyFrame:
    """The impact or effects tables of a dataset as one lazy frame, ``prompt_id`` in front, in the order of the prompts.

    A dataset that is not complete is read as far as it goes with ``partial``. Every part must have the size that it was
    written with; ``verify`` compares all of its bytes first, which takes about a second per gigabyte, and happens by
    itself for up to ``VERIFIED_BYTES``: a damaged page of Parquet may well read as other numbers. Raises
    ``ResultsError`` for a part that was damaged, and where there is no dataset, or no complete one. Join with
    ``prompts.parquet`` and ``tokens.parquet`` on ``prompt_id``.
    """
    manifest = dataset_manifest(folder)
    if manifest["status"] != COMPLETE and not partial:
        raise ResultsError(
            f"the dataset in {shown(folder)} is {manifest['status']}; run its command again to complete it, or read "
            "what there is with partial=True"
        )
    form = manifest["settings"]["format"]
    home = Folder(Path(folder), form)
    parts = home.parts(verify=home.num_bytes <= VERIFIED_BYTES if verify is None else verify)
    if not parts:
        question = manifest["settings"].get(QUESTION, {})
        columns = EFFECT_COLUMNS if question.get("read") == "output" else IMPACT_COLUMNS
        return pl.LazyFrame(schema={PROMPT_ID: pl.Int64, **{name: TYPES[name] for name in columns}})
    with reading(parts[0]):
        if form == "parquet":
            lazy = pl.scan_parquet(parts, glob=False, hive_partitioning=False)
        else:
            types = CSV_TYPES | {PROMPT_ID: pl.String if manifest["settings"]["ids"] == IDS[True] else pl.Int64}
            lazy = refilled(pl.scan_csv(parts, schema_overrides=types, glob=False))
        schema = lazy.collect_schema()
    if reason := unfit(schema):
        raise ResultsError(f"{shown(parts[0])}{one_line(reason)}")
    return lazy


def dataset_provenance(folder: FilePath) -> dict[str, Any]:
    """What produced the dataset, in the words of a results file's provenance, and its manifest."""
    manifest = dataset_manifest(folder)
    model, settings = manifest["model"], manifest["settings"]
    receipts = Folder(Path(folder)).receipts().values()
    prompts = sum(receipt.counts.get("prompts", 0) for receipt in receipts)
    state = "" if manifest["status"] == COMPLETE else f"; {manifest['status']}"
    return {
        "description": model["name"],
        "layers": model["layers"],
        "heads": model["heads"],
        "dtype": settings["dtype"],
        "device": settings["device"],
        "torch": manifest["versions"]["torch"],
        "transformers": manifest["versions"]["transformers"],
        "prompt": f"{prompts:,} of {manifest['input']}{state}",
        "prompts": prompts,
        "question": settings.get(QUESTION, {}),
        "manifest": manifest,
    }


def prompt_lengths(folder: FilePath) -> pl.DataFrame | None:
    """``prompt_id`` (text, of CSV) and ``num_tokens`` of a dataset's prompts; None where it is not complete.

    Raises ``ResultsError`` for a file that cannot be read.
    """
    manifest = dataset_manifest(folder)
    home = Folder(Path(folder), manifest["settings"]["format"])
    path = home.table("prompts")
    if manifest["status"] != COMPLETE:
        return None
    home.whole(path.name, manifest["files"][path.name], True)
    with reading(path):
        if path.suffix == ".parquet":
            lazy = pl.scan_parquet(path, glob=False, hive_partitioning=False)
        else:
            lazy = pl.scan_csv(path, schema_overrides={PROMPT_ID: pl.String}, glob=False)
        return lazy.select(PROMPT_ID, pl.col("num_tokens").cast(pl.Int32)).collect()


def dataset_manifest(folder: FilePath) -> Manifest:
    """What made the dataset, and what it holds. Raises ``ResultsError`` where there is none."""
    manifest = read_manifest(Path(folder) / MANIFEST)
    if manifest is None:
        raise ResultsError(f"{shown(folder)} holds no dataset: it has no {MANIFEST}; give the folder of a finished run")
    return manifest
