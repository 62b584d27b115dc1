"""The analysis of an effects table as text for a terminal, and as JSON."""

import json
from collections.abc import Mapping
from typing import Any

import polars as pl

from engine.findings.answers import MEASURES, AnswerAnalysis
from engine.findings.report import origin_lines
from engine.findings.terminal import aligned, number, plain, plural, quoted

TITLES = {
    "layer": "layer",
    "query_position": "query",
    "token_position": "position",
    "masked_positions": "positions",
    "prompt_id": "prompt",
    "token_masked": "token",
    "answer": "answer",
    "answer_logprob_change": "change",
    "kl_divergence": "KL",
    "top_token_masked": "top token",
}
TEXTS = ("token_masked", "answer", "top_token_masked")


def as_text(analysis: AnswerAnalysis, *, provenance: Mapping[str, Any] | None = None) -> str:
    """What produced the table, sizes, and the rankings by each measure."""
    counts = analysis.counts
    prompts = plural(counts["prompts"], "prompt") if counts["prompts"] else "no prompt_id: read as one prompt"
    lines = [
        *origin_lines(provenance or {}),
        f"Effects on the answer: {plural(counts['rows'], 'row')}, {plural(counts['layers'], 'layer')}, {prompts}",
        f"Undefined effects (null), counted in no mean: {counts['undefined']:,}",
    ]
    if analysis.skip_first:
        lines.append(f"Position 0 is left out of everything below ({plural(counts['skipped_rows'], 'row')}).")
    for name, label in MEASURES.items():
        sections = {
            "Tokens, mean": analysis.tokens,
            "Layers, mean": analysis.layers,
            "Single effects": analysis.effects,
        }
        lines += ["", "", f"BY {label.upper()} (absolute, nats)"]
        for title, frame in sections.items():
            lines += ["", title, *(f"  {line}" for line in _table(frame.filter(distance=name)))]
    return "\n".join(lines) + "\n"


def as_json(analysis: AnswerAnalysis, *, provenance: Mapping[str, Any] | None = None) -> str:
    """One JSON object: ``provenance``, ``counts``, ``skip_first`` and ``rankings``: measure → ``tokens``, ``layers``
    (with ``mean`` of the absolute values and ``count``) and ``effects`` (with ``value``): lists of objects."""
    frames = {"tokens": analysis.tokens, "layers": analysis.layers, "effects": analysis.effects}
    rankings = {
        name: {part: frame.filter(distance=name).drop("distance").to_dicts() for part, frame in frames.items()}
        for name in MEASURES
    }
    found = {"provenance": provenance, "counts": analysis.counts, "skip_first": analysis.skip_first}
    return json.dumps(found | {"rankings": rankings}, ensure_ascii=False, allow_nan=False, indent=1) + "\n"


def _table(frame: pl.DataFrame) -> list[str]:
    shown = [name for name in TITLES if name in frame.columns]
    mean = ["mean"] if "mean" in frame.columns else []
    rows = [
        [str(row["rank"]), *(number(row[name]) for name in mean), *(_cell(name, row[name]) for name in shown)]
        for row in frame.to_dicts()
    ]
    return aligned([["#", *mean, *(TITLES[name] for name in shown)], *rows])


def _cell(name: str, value: Any) -> str:
    if name in MEASURES:
        return number(value)
    if value is None:
        return "all" if name == "layer" else "-"
    return quoted(value) if name in TEXTS else plain(str(value))
