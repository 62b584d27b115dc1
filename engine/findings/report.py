"""An analysis as a report for a terminal of 100 columns, and as JSON."""

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import polars as pl

from engine.findings.analysis import Analysis
from engine.findings.cells import BY_HEAD, DISTANCES, KINDS
from engine.findings.terminal import aligned, bar, number, plain, plural, quoted, side_by_side
from engine.questions.saying import spoken

TITLES = {
    "layer": "layer",
    "variant": "variant",
    "query_position": "query",
    "token_position": "position",
    "masked_positions": "positions",
    "prompt_id": "prompt",
    "token_masked": "token",
}
ORIGIN = {
    "Model": "{description}",
    "Run": "{layers} layers x {heads} heads, {dtype} on {device}; torch {torch}, transformers {transformers}",
    "Prompt": "{prompt}",
}
LINE_WIDTH = 100


def as_text(analysis: Analysis, *, provenance: Mapping[str, Any] | None = None) -> str:
    """What produced the table, sizes, the rankings of each kind, the profile over layers and the statistics."""
    headline = [*origin_lines(provenance or {}), *_headline(analysis)]
    kinds = [_kind_section(analysis, kind) for kind in _kinds(analysis)]
    profiles = [_profile_section(analysis.profile, distance) for distance in DISTANCES]
    statistics = [_statistics_section(analysis.statistics, distance) for distance in DISTANCES]
    return "\n\n\n".join("\n".join(lines) for lines in [headline, *kinds, *profiles, *statistics]) + "\n"


def as_json(analysis: Analysis, *, provenance: Mapping[str, Any] | None = None) -> str:
    """One JSON object; every number is finite, and null stands for what is not defined.

    ``provenance``: what produced the table, null where its file does not say. ``counts``: object. ``skip_first``:
    boolean. ``rankings``: kind → distance → ``tokens``, ``layers``, ``cells`` and, for Head and Result, ``heads``:
    lists of objects with ``rank``, labels and ``mean`` and ``count`` (cells: ``value``). ``profile``: kind → distance
    → list of ``layer``, ``mean``, ``count``. ``statistics``: variant → distance → ``count``, ``null_count``, ``mean``,
    ``std``, ``min``, ``q05``, ``q25``, ``q50``, ``q75``, ``q95``, ``max``.
    """
    kinds = _kinds(analysis)
    statistics: dict[str, dict[str, Any]] = {}
    for row in analysis.statistics.to_dicts():
        statistics.setdefault(row.pop("variant"), {})[row.pop("distance")] = row
    found = {
        "provenance": provenance,
        "counts": analysis.counts,
        "skip_first": analysis.skip_first,
        "rankings": {kind: {name: _ranking_dicts(analysis, kind, name) for name in DISTANCES} for kind in kinds},
        "profile": {
            kind: {name: _part(analysis.profile, kind, name).to_dicts() for name in DISTANCES} for kind in kinds
        },
        "statistics": statistics,
    }
    return json.dumps(found, ensure_ascii=False, allow_nan=False, indent=1) + "\n"


def origin_lines(provenance: Mapping[str, Any]) -> list[str]:
    """The lines on the model, how it ran and the prompt, as far as the file tells them."""
    lines = []
    for title, form in ORIGIN.items():
        with suppress(KeyError):
            lines.append(f"{title:<8}{plain(form.format_map(provenance), columns=LINE_WIDTH - 8)}")
    if question := _question(provenance):
        lines.append(f"Asked   {plain(question, columns=LINE_WIDTH - 8)}")
    if provenance.get("checked") is False:
        lines.append("Check   skipped (--no-check): these numbers were not held against transformers")
    return [*lines, ""] if lines else []


def _question(provenance: Mapping[str, Any]) -> str:
    """The options of the question; empty for the default one, and for what is none."""
    words = provenance.get("question")
    with suppress(TypeError, ValueError, AttributeError):
        return spoken(words) if isinstance(words, Mapping) else ""
    return ""


def _kinds(analysis: Analysis) -> list[str]:
    return [kind for kind in KINDS if kind in analysis.profile["kind"]]


def _part(frame: pl.DataFrame, kind: str, distance: str) -> pl.DataFrame:
    return frame.filter(kind=kind, distance=distance).drop("kind", "distance")


def _ranking_dicts(analysis: Analysis, kind: str, distance: str) -> dict[str, list[dict[str, Any]]]:
    names = ["tokens", "layers", *(["heads"] if kind in BY_HEAD else []), "cells"]
    return {name: _part(getattr(analysis, name), kind, distance).to_dicts() for name in names}


def _headline(analysis: Analysis) -> list[str]:
    counts = analysis.counts
    named = [name for name in ("rows", "layers", "tokens", "heads") if counts[name] is not None]
    sizes = [plural(counts[name], name[:-1]) for name in named]
    sizes.append(plural(counts["prompts"], "prompt") if counts["prompts"] else "no prompt_id: read as one prompt")
    if counts["query_positions"]:
        sizes.append(plural(counts["query_positions"], "query position"))
    nulls = ", ".join(f"{counts[f'null_{name}']:,} of {label}" for name, label in DISTANCES.items())
    lines = [
        f"Impact of masked tokens: {', '.join(sizes)}",
        f"Undefined cells (null), counted in no mean: {nulls}",
        "Full, Attn and heads are measured in different spaces: compare distances within one kind only.",
    ]
    skipped = f"Position 0 is left out of everything below ({plural(counts['skipped_rows'], 'row')})."
    return [*lines, skipped] if analysis.skip_first else lines


def _kind_section(analysis: Analysis, kind: str) -> list[str]:
    over = " and heads" if kind in BY_HEAD else ""
    rankings = {
        f"Tokens, mean over layers{over}": analysis.tokens,
        f"Layers, mean over tokens{over}": analysis.layers,
        "Heads, mean over tokens": analysis.heads,
        "Single cells": analysis.cells,
    }
    lines = [f"{kind.upper()}: {KINDS[kind]}"]
    for title, frame in rankings.items():
        parts = {label: _part(frame, kind, name) for name, label in DISTANCES.items()}
        if any(len(part) for part in parts.values()):
            left, right = (aligned(_ranking(part, label)) for label, part in parts.items())
            lines += ["", title, *_indented(side_by_side(left, right))]
        if frame is analysis.tokens:
            lines += _sink_note(parts)
    return lines


def _sink_note(tokens: dict[str, pl.DataFrame]) -> list[str]:
    leads = [label for label, part in tokens.items() if part["token_position"].head(1).to_list() == [0]]
    note = f"  Position 0 ranks first ({', '.join(leads)}): often an attention sink. --skip-first leaves it out."
    return [note] if leads else []


def _ranking(part: pl.DataFrame, distance: str) -> list[list[str]]:
    """The rows of a ranking as text under a header: rank, score, then the labels, the token last."""
    shown = [name for name in TITLES if name in part.columns]
    if "variant" in shown and not part["variant"].str.contains("_").any():
        shown.remove("variant")
    score = "mean" if "mean" in part.columns else "value"
    rows = [
        [str(row["rank"]), number(row[score]), *(_label(name, row[name]) for name in shown)] for row in part.to_dicts()
    ]
    return [["#", f"{distance} {score}", *(TITLES[name] for name in shown)], *rows]


def _label(name: str, value: object) -> str:
    return quoted(str(value)) if name == "token_masked" else plain(str(value))


def _profile_section(profile: pl.DataFrame, distance: str) -> list[str]:
    """The mean of each layer and kind, with bars as shares of the greatest mean of the kind."""
    part = profile.filter(distance=distance)
    kinds = part["kind"].unique(maintain_order=True).to_list()
    means = {(layer, kind): mean for layer, kind, mean in part.select("layer", "kind", "mean").iter_rows()}
    most = {kind: max(part.filter(kind=kind)["mean"]) for kind in kinds}
    rows = [["layer", *(title for kind in kinds for title in (kind, ""))]]
    for layer in part["layer"].unique().sort():
        found = [(means.get((layer, kind)), most[kind]) for kind in kinds]
        rows.append([str(layer), *(text for mean, greatest in found for text in _number_and_bar(mean, greatest))])
    return [f"PROFILE: mean {DISTANCES[distance]} distance of each layer", "", *_indented(aligned(rows))]


def _number_and_bar(mean: float | None, greatest: float) -> tuple[str, str]:
    return number(mean), bar(max(mean / greatest, 0.0) if mean and greatest > 0 else 0.0)


def _statistics_section(statistics: pl.DataFrame, distance: str) -> list[str]:
    part = statistics.filter(distance=distance).drop("distance").rename({"null_count": "null"})
    as_is = ("variant", "count", "null")
    rows = [[str(row[name]) if name in as_is else number(row[name]) for name in row] for row in part.to_dicts()]
    title = f"STATISTICS: {DISTANCES[distance]} distance of each variant"
    return [title, "", *aligned([part.columns, *rows], gap=" ")]


def _indented(lines: list[str]) -> list[str]:
    return [f"  {line}".rstrip() for line in lines]
