"""Findings across prompts, and comparisons, as text for a terminal and as JSON."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from engine.findings.across import Across, measures_of
from engine.findings.comparison import Comparison
from engine.findings.intervals import Bootstrap
from engine.findings.report import LINE_WIDTH, origin_lines
from engine.findings.terminal import aligned, number, plain, plural, quoted
from engine.findings.units import BYS, PLACE, By

TITLES = {"layer": "layer", "variant": "variant", PLACE: "place", "token_masked": "token"}
NUMBERS = {"mean": "mean", "mean_a": "in A", "mean_b": "in B", "difference": "B - A", "low": "from", "high": "to"}
NAMES = {"text": "token text", "position": "place in the prompt", "layer": "layer", "head": "head"}
LEAST_SHOWN = 12
"""Rows that are shown of groups with an order of their own, at the least."""
ALL_LAYERS = "all"


def as_text(found: Across, *, top: int, provenance: Mapping[str, Any] | None = None) -> str:
    """What produced the table, how many prompts, and the groups of each kind and distance."""
    lines = [
        *origin_lines(provenance or {}),
        f"Means by {NAMES[found.by.name]} across {plural(found.prompts, 'prompt')}, each of which counts once.",
        *_conditions(found.bootstrap, found.prompts, found.min_count, skip_first=found.skip_first),
    ]
    if found.by.name == "position":
        lines.append("Places are counted from the query: last is the query itself, -1 the token in front of it.")
    if found.by.heads_only:
        lines.append(f"often: the share of prompts in which the head is among the {found.among} greatest of its prompt")
    sections = _sections(found.groups, found.by, top)
    return "\n\n\n".join("\n".join(part) for part in (lines, *sections)) + "\n"


def as_json(found: Across, *, provenance: Mapping[str, Any] | None = None) -> str:
    """One JSON object; every number is finite, and null stands for what is not defined.

    ``provenance``, ``by``, ``unit`` (prompt), ``prompts``, ``min_count``, ``among``, ``interval`` (``level``,
    ``method`` and, of a bootstrap, ``resamples`` and ``seed``), ``skip_first``, and ``groups``, the rows of
    ``Across.groups``.
    """
    told = {
        "provenance": provenance,
        "by": found.by.name,
        "unit": "prompt",
        "prompts": found.prompts,
        "min_count": found.min_count,
        "among": found.among if found.by.heads_only else None,
        "interval": _interval(found.bootstrap),
        "skip_first": found.skip_first,
        "groups": found.groups.to_dicts(),
    }
    return _dumped(told)


def comparison_as_text(found: Comparison, *, top: int, names: tuple[str, str]) -> str:
    """How the two sets were matched, and the groups that changed most."""
    lines = [
        f"A       {plain(names[0], columns=LINE_WIDTH - 8)}",
        f"B       {plain(names[1], columns=LINE_WIDTH - 8)}",
        "",
    ]
    if found.paired:
        lines.append(f"Compared within {plural(found.paired, 'prompt')} that both hold, with the same tokens.")
        lines += [
            f"Left out: {alone:,} only in {side}." for side, alone in zip("AB", found.alone, strict=True) if alone
        ]
    else:
        first, second = (alone + found.differing for alone in found.alone)
        lines.append(f"No prompt is in both with the same tokens: {first:,} of A beside {second:,} of B, unpaired.")
    if found.differing and found.paired:
        lines.append(f"Left out: {plural(found.differing, 'prompt')} whose tokens differ.")
    lines += _conditions(found.bootstrap, found.paired, found.min_count, skip_first=found.skip_first)
    parts = [lines]
    for name, groups in found.groups.items():
        heading = f"BY {NAMES[name].upper()}" + (", the greatest changes first" if BYS[name].ranked else "")
        one, *others = _sections(groups, BYS[name], top) if len(groups) else [["  (no group is in enough prompts)"]]
        parts += [[heading, "", *one], *others]
    return "\n\n\n".join("\n".join(part) for part in parts) + "\n"


def comparison_as_json(found: Comparison, *, provenances: Mapping[str, Mapping[str, Any] | None]) -> str:
    """One JSON object: ``provenance`` of ``a`` and ``b``, ``paired``, ``alone``, ``differing``, ``min_count``,
    ``interval``, ``skip_first``, and ``groups``: way of grouping → list of the rows of ``Comparison.groups``."""
    told = {
        "provenance": dict(provenances),
        "unit": "prompt",
        "paired": found.paired,
        "alone": dict(zip("ab", found.alone, strict=True)),
        "differing": found.differing,
        "min_count": found.min_count,
        "interval": _interval(found.bootstrap),
        "skip_first": found.skip_first,
        "groups": {name: frame.to_dicts() for name, frame in found.groups.items()},
    }
    return _dumped(told)


def _dumped(told: Mapping[str, Any]) -> str:
    return json.dumps(told, ensure_ascii=False, allow_nan=False, indent=1) + "\n"


def _interval(bootstrap: Bootstrap | None) -> dict[str, Any]:
    if bootstrap is None:
        return {"level": 0.95, "method": "normal"}
    return {"level": 0.95, "method": "bootstrap", "resamples": bootstrap.resamples, "seed": bootstrap.seed}


def _conditions(bootstrap: Bootstrap | None, prompts: int, min_count: int, *, skip_first: bool) -> list[str]:
    """How intervals are made, and what is left out."""
    how = "by the normal approximation over prompts"
    if bootstrap is not None:
        how = f"by resampling the prompts {bootstrap.resamples:,} times (bootstrap, seed {bootstrap.seed})"
    lines = ["One prompt: there is no interval." if prompts == 1 else f"from, to: 95 % confidence interval {how}"]
    lines += [f"Left out: what fewer than {min_count} prompts have (--min-count)."] * (min_count > 1)
    return lines + ["Position 0 is left out of everything below."] * skip_first


def _sections(groups: pl.DataFrame, by: By, top: int) -> Iterator[list[str]]:
    """A table for each kind and measure that has groups."""
    most = top if by.ranked else max(top, LEAST_SHOWN)
    for kind in groups["kind"].unique(maintain_order=True):
        for measure, label in measures_of(groups).items():
            part = groups.filter(kind=kind, distance=measure)
            if len(part):
                more = [f"  ... and {len(part) - most:,} more"] if len(part) > most else []
                title = f"{kind.upper()}, {label}{'' if ' ' in label else ' distance'}"
                yield [
                    title,
                    *(f"  {line}".rstrip() for line in aligned(_rows(part.head(most), ranked=by.ranked))),
                    *more,
                ]


def _rows(part: pl.DataFrame, *, ranked: bool) -> list[list[str]]:
    """The rows as text under a header: rank, numbers, prompts, the labels last."""
    labels = {name: title for name, title in TITLES.items() if name in part.columns}
    numbers = {name: title for name, title in NUMBERS.items() if name in part.columns}
    shares = {name: title for name, title in {"relative": "change", "often": "often"}.items() if name in part.columns}
    header = [*numbers.values(), *shares.values(), "prompts", *labels.values()]
    rows = [
        [
            *(number(row[name]) for name in numbers),
            *(_percent(row[name], signed=name == "relative") for name in shares),
            f"{row['prompts']:,}",
            *(_label(name, row[name]) for name in labels),
        ]
        for row in part.to_dicts()
    ]
    ranks = [["#"], *([str(rank)] for rank in range(1, len(rows) + 1))]
    return [[*rank, *row] for rank, row in zip(ranks, [header, *rows], strict=True)] if ranked else [header, *rows]


def _percent(share: float | None, *, signed: bool) -> str:
    return "-" if share is None else f"{100 * share:{'+' if signed else ''}.3g}%"


def _label(name: str, value: object) -> str:
    if name == "token_masked":
        return quoted(str(value))
    return ALL_LAYERS if value is None else plain(str(value))
