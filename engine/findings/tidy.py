"""Findings as one long frame, and the files that hold it: CSV, Parquet or JSON."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from engine.errors import ResultsError
from engine.files import FilePath, new_file, require_writable, shown
from engine.findings.across import Across
from engine.findings.analysis import Analysis
from engine.findings.answers import AnswerAnalysis
from engine.findings.comparison import Comparison
from engine.tables.results import PROVENANCE_KEY

SUFFIXES = (".csv", ".parquet", ".json")
PARTS = ("tokens", "layers", "heads", "cells", "effects", "profile", "statistics")


def tidy(found: Analysis | AnswerAnalysis | Across | Comparison) -> pl.DataFrame:
    """One row per finding. ``finding`` says which list it stands in: a ranking, the profile, statistics, or how it is
    grouped (``text``, ``position``, ``layer``, ``head``); columns that a list does not have are null."""
    if isinstance(found, Across):
        frames = {found.by.name: found.groups}
    elif isinstance(found, Comparison):
        frames = found.groups
    else:
        frames = {name: getattr(found, name) for name in PARTS if hasattr(found, name)}
    return pl.concat([_plain(frame, name) for name, frame in frames.items()], how="diagonal")


def check_findings_path(path: FilePath) -> None:
    """Raise ``ResultsError`` for a file that cannot hold findings, before the work is done."""
    if Path(path).suffix.lower() not in SUFFIXES:
        raise ResultsError(f"{shown(path)} cannot hold findings; end the name in {', '.join(SUFFIXES)}")
    require_writable(path)


def write_findings(frame: pl.DataFrame, path: FilePath, *, provenance: Mapping[str, Any] | None = None) -> None:
    """Write a frame of ``tidy``; Parquet and JSON also hold ``provenance``. Raises ``ResultsError``."""
    check_findings_path(path)
    with new_file(path) as file:
        match Path(path).suffix.lower():
            case ".csv":
                frame.write_csv(file)
            case ".parquet":
                frame.write_parquet(file, compression="zstd", metadata={PROVENANCE_KEY: json.dumps(provenance)})
            case _:
                told = {"provenance": provenance, "findings": frame.to_dicts()}
                file.write((json.dumps(told, ensure_ascii=False, allow_nan=False) + "\n").encode())


def _plain(frame: pl.DataFrame, name: str) -> pl.DataFrame:
    """``frame`` with texts in place of categories, and the name of its list in front."""
    texts = [column for column, kind in frame.schema.items() if isinstance(kind, pl.Enum | pl.Categorical)]
    return frame.select(pl.lit(name).alias("finding"), pl.all()).with_columns(pl.col(texts).cast(pl.String))
