"""What stands out in an impact table: tokens, layers, heads and single cells, with statistics and a profile.

The table is read in batches, twice: once for sums, maxima and histograms, once more to make the quantiles exact. So
memory holds a batch and one entry per token, not the file. Distances of Full, Attn and heads live in different spaces
and are never ranked together: each *kind* of variant has rankings of its own, for each distance.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from engine.errors import ResultsError

KINDS = {
    "Full": "what the layer adds to the residual stream (attention and MLP)",
    "Attn": "what the layer's attention adds to the residual stream",
    "Head": "output of each attention head, before the output projection",
}
DISTANCES = {"l2_distance": "L2", "cosine_distance": "cosine"}
QUANTILES = {"q05": 0.05, "q25": 0.25, "q50": 0.50, "q75": 0.75, "q95": 0.95}
LABELS = ("layer", "token_position", "token_masked", "variant")

BATCH_ROWS = 500_000
PENDING_ROWS = 2_000_000
SIGNIFICANT_DIGITS = 9  # further digits of a mean depend on the order of summation and would break ties by chance
BUCKET_SIZE = 65536  # neighbouring float32 values in one bucket of a histogram: a width of 0.8 %

HALF_WIDTH, TEXT_WIDTH, BAR_WIDTH = 48, 18, 20

Frame = pl.DataFrame
Rows = list[list[str]]
_DISTANCE = pl.Enum(list(DISTANCES))
_KIND = pl.Enum(list(KINDS))
_SIGN_BIT = pl.lit(2**31, dtype=pl.UInt32)


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """The findings in a table of results, as small frames.

    ``counts`` says what was read: ``rows``, ``skipped_rows``, ``layers``, ``tokens``, ``heads``, ``prompts`` and
    ``query_positions`` (None where no column tells) and the null cells per distance. The rankings ``tokens``,
    ``layers``, ``heads`` and ``cells`` have ``distance``, ``kind`` and ``rank`` in front; ``profile`` is the mean per
    layer; ``statistics`` has a row per distance and variant. Null cells are counted and otherwise skipped.
    """

    counts: dict[str, int | None]
    skip_first: bool
    tokens: Frame
    layers: Frame
    heads: Frame
    cells: Frame
    profile: Frame
    statistics: Frame

    def to_text(self, *, limit: int | None = None) -> str:
        """A report for a terminal of 100 columns, with at most ``limit`` rows per ranking."""
        kinds = [_kind_report(self, kind, limit) for kind in KINDS if kind in self.profile["kind"]]
        profiles = [_profile_report(self.profile, distance) for distance in DISTANCES]
        statistics = [_statistics_report(self.statistics, distance) for distance in DISTANCES]
        return "\n\n\n".join("\n".join(lines) for lines in [_headline(self), *kinds, *profiles, *statistics]) + "\n"

    def to_json(self) -> str:
        """One JSON object; every number is finite, and null stands for what is not defined.

        ``counts``: object. ``skip_first``: boolean. ``rankings``: kind → distance → ``tokens``, ``layers``, ``cells``
        and, for Head, ``heads``: lists of objects with ``rank``, labels and ``mean`` and ``count`` (cells: ``value``).
        ``profile``: kind → distance → list of ``layer``, ``mean``, ``count``. ``statistics``: variant → distance →
        ``count``, ``null_count``, ``mean``, ``std``, ``min``, ``q05``, ``q25``, ``q50``, ``q75``, ``q95``, ``max``.
        """
        kinds = [kind for kind in KINDS if kind in self.profile["kind"]]
        statistics: dict[str, dict[str, Any]] = {}
        for row in self.statistics.to_dicts():
            statistics.setdefault(row.pop("variant"), {})[row.pop("distance")] = row
        found = {
            "counts": self.counts,
            "skip_first": self.skip_first,
            "rankings": {kind: {name: self._rankings(kind, name) for name in DISTANCES} for kind in kinds},
            "profile": {
                kind: {name: _part(self.profile, kind, name).to_dicts() for name in DISTANCES} for kind in kinds
            },
            "statistics": statistics,
        }
        return json.dumps(found, ensure_ascii=False, allow_nan=False, indent=1) + "\n"

    def _rankings(self, kind: str, distance: str) -> dict[str, list[dict[str, Any]]]:
        frames = {"tokens": self.tokens, "layers": self.layers, "heads": self.heads, "cells": self.cells}
        return {
            name: _part(frame, kind, distance).to_dicts()
            for name, frame in frames.items()
            if name != "heads" or kind == "Head"
        }


def analyze(lazy: pl.LazyFrame, *, top: int = 10, skip_first: bool = False) -> Analysis:
    """Summarise the impact table ``lazy``; each ranking keeps its ``top`` best rows.

    With ``skip_first`` the rows of position 0 are left out of everything but ``counts["skipped_rows"]``. Tokens are
    told apart by position and text, and by ``prompt_id`` where there is one. Equal values are ordered by layer,
    position, head and prompt. Raises ``ResultsError`` for a table without any defined distance, with NaN or infinite
    ones, with rows that lack a label, or with an unknown variant.
    """
    keys = [key for key in ("prompt_id", "query_position") if key in lazy.collect_schema().names()]
    sums = _first_pass(lazy, keys, top=top, skip_first=skip_first)
    groups = sums["groups"]
    tokens = sums["tokens"].with_columns(mean=pl.col("total") / pl.col("count"))
    profile = _means(_pooled(groups, ["distance", "kind", "layer"]))
    return Analysis(
        counts=_counts(lazy, sums, skip_first=skip_first),
        skip_first=skip_first,
        tokens=_ranked(_means(tokens), ["token_position", "token_masked", *_prompt(keys)], top=top),
        layers=_ranked(profile, ["layer"], top=top),
        heads=_ranked(_means(groups.filter(kind=2)), ["layer", "code"], top=top),
        cells=_ranked(sums["cells"], ["layer", "token_position", "code", "token_masked", *keys], top=top),
        profile=profile.sort("distance", "kind", "layer").select("distance", _kind(), "layer", "mean", "count"),
        statistics=_statistics(groups, _quantiles(lazy, sums, skip_first=skip_first)),
    )


# Reading: batches of the file become rows of one distance each, with variants as integers in table order.


def _long_batches(lazy: pl.LazyFrame, keys: Sequence[str], *, skip_first: bool) -> Iterator[Frame]:
    """One row per cell and distance: labels, ``code`` (0 Full, 1 Attn, 2 + head), ``kind`` (0, 1, 2), ``value``."""
    columns = lazy.select(*keys, *LABELS, *DISTANCES)
    # The one call here that polars may still change; other ways read a text file once for each sum.
    for batch in columns.collect_batches(chunk_size=BATCH_ROWS, maintain_order=True):
        codes = _variant_codes(batch)
        code = pl.col("variant").cast(pl.String).replace_strict(codes, return_dtype=pl.Int32)
        kept = batch.filter(pl.col("token_position") != 0) if skip_first else batch
        coded = kept.with_columns(code.alias("code"), code.clip(upper_bound=2).alias("kind"))
        values = [
            (pl.lit(name, dtype=_DISTANCE).alias("distance"), pl.col(name).cast(pl.Float32)) for name in DISTANCES
        ]
        yield pl.concat(
            coded.select(*keys, *LABELS[:3], "code", "kind", name, value.alias("value")) for name, value in values
        )


def _variant_codes(batch: Frame) -> dict[str, int]:
    """The place of each variant in table order. Raises ``ResultsError`` for an unknown one, and for missing labels."""
    lacking = [name for name in LABELS if batch[name].null_count()]
    if lacking:
        raise ResultsError(f"some rows lack {', '.join(lacking)}; the file is damaged or cut off: write it again")
    names = batch["variant"].cast(pl.String).unique().to_list()
    matches = {name: re.fullmatch(r"Full|Attn|Head_(0|[1-9][0-9]{0,5})", name) for name in names}
    unknown = sorted(name for name in names if not matches[name])
    if unknown:
        shown = ", ".join(repr(name) for name in unknown[:3])
        raise ResultsError(f"unknown variant {shown}; expected Full, Attn, Head_0, Head_1, ...: is the file cut off?")
    return {name: 2 + int(match[1]) if match[1] else int(name == "Attn") for name, match in matches.items() if match}


class _Running:
    """Partial results of batches, merged now and then so that their number stays bounded."""

    def __init__(self, merge: Callable[[Frame], Frame]) -> None:
        self.merge, self.frames, self.pending = merge, list[Frame](), 0

    def add(self, frame: Frame) -> None:
        self.frames.append(frame)
        self.pending += len(frame)
        if self.pending > PENDING_ROWS:
            self.frames, self.pending = [self.result()], 0

    def result(self) -> Frame:
        return self.merge(pl.concat(self.frames))


def _first_pass(lazy: pl.LazyFrame, keys: Sequence[str], *, top: int, skip_first: bool) -> dict[str, Frame]:
    """Everything but the exact quantiles: moments per group, sums per token, histograms, best cells, label counts."""
    token = [*_prompt(keys), "token_position", "token_masked", "distance", "kind"]
    running = {
        "groups": _Running(lambda frame: _pooled(frame, ["distance", "layer", "code", "kind"])),
        "tokens": _Running(_summed),
        "histogram": _Running(_summed),
        "cells": _Running(lambda frame: _best(frame.lazy(), keys, top=top).collect()),
        "queries": _Running(Frame.unique),
    }
    for batch in _long_batches(lazy, keys, skip_first=skip_first):
        cells = batch.lazy()
        parts = {
            "groups": _moments(cells, ["distance", "layer", "code", "kind"]),
            "tokens": _totals(cells, token),
            "histogram": _histogram(cells, _place() // BUCKET_SIZE),
            "cells": _best(cells, keys, top=top),
            "queries": cells.select(key for key in keys if key not in _prompt(keys)).unique(),
        }
        for name, frame in zip(parts, pl.collect_all(parts.values(), engine="streaming"), strict=True):
            running[name].add(frame)
    sums = {name: partial.result() for name, partial in running.items() if partial.frames}
    _require_defined(sums, skip_first=skip_first)
    return sums


def _require_defined(sums: dict[str, Frame], *, skip_first: bool) -> None:
    beyond = " beyond position 0; leave --skip-first out" if skip_first else "; give a file that holds an impact table"
    if not sums or sums["groups"].is_empty():
        raise ResultsError(f"there are no rows{beyond}")
    if not sums["groups"]["infinite"].sum() == 0:
        raise ResultsError("some distances are NaN or infinite; undefined cells must be null: measure again")
    if not sums["groups"]["count"].sum():
        raise ResultsError(f"no distance is defined, all are null{beyond}")


def _prompt(keys: Sequence[str]) -> list[str]:
    return [key for key in keys if key == "prompt_id"]


# Sums: each of these can be taken batch by batch and merged.


def _moments(cells: pl.LazyFrame, by: Sequence[str]) -> pl.LazyFrame:
    """Per group: rows, defined values (``count``), their mean, squared deviations (``m2``), least and greatest."""
    value = pl.col("value").cast(pl.Float64)
    return cells.group_by(by).agg(
        pl.len().cast(pl.Int64).alias("rows"),
        value.count().cast(pl.Int64).alias("count"),
        value.is_finite().not_().sum().cast(pl.Int64).alias("infinite"),
        value.mean().alias("mean"),
        (value.var(ddof=0) * value.count()).alias("m2"),
        value.min().alias("min"),
        value.max().alias("max"),
    )


def _pooled(moments: Frame, by: Sequence[str]) -> Frame:
    """The moments of larger groups from those of their parts (Chan, Golub and LeVeque, 1979)."""
    count, mean = pl.col("count"), pl.col("mean")
    total = pl.when(count.sum() > 0).then((count * mean).sum() / count.sum())
    return moments.group_by(by).agg(
        pl.col("rows", "count", "infinite").sum(),
        total.alias("mean"),
        (pl.col("m2").sum() + (count * (mean - total) ** 2).sum()).alias("m2"),
        pl.col("min").min(),
        pl.col("max").max(),
    )


def _totals(cells: pl.LazyFrame, by: Sequence[str]) -> pl.LazyFrame:
    value = pl.col("value").cast(pl.Float64)
    return cells.group_by(by).agg(count=value.count().cast(pl.Int64), total=value.sum())


def _summed(frame: Frame) -> Frame:
    """Totals or histograms of several batches as one."""
    return frame.group_by(pl.exclude("count", "total")).agg(pl.col("^(count|total)$").sum())


def _best(cells: pl.LazyFrame, keys: Sequence[str], *, top: int) -> pl.LazyFrame:
    """The ``top`` greatest values of each distance and kind; equal ones in order of their labels."""
    labels = ["layer", "token_position", "code", "token_masked", *keys]
    reverse = [False, *(True for _ in labels)]
    groups = [cells.filter(distance=name, kind=kind) for name in DISTANCES for kind in range(len(KINDS))]
    return pl.concat(group.drop_nulls("value").top_k(top, by=["value", *labels], reverse=reverse) for group in groups)


# Quantiles, exact in two passes: the bucket of a rank from a histogram of buckets, its value from one of values.
# A ``place`` orders all values of all variants: distance and variant in the upper 32 bits, the value in the lower ones.


def _place() -> pl.Expr:
    bits = pl.col("value").reinterpret(dtype=pl.UInt32)
    ordered = pl.when(bits < _SIGN_BIT).then(bits + _SIGN_BIT).otherwise(~bits)
    series = pl.col("code").cast(pl.UInt64) * len(DISTANCES) + pl.col("distance").to_physical()
    return series * 2**32 + ordered


def _values_of(places: np.ndarray) -> np.ndarray:
    """The values that went into ``places``, as float64."""
    bits = (places % 2**32).astype(np.uint32)
    return np.where(bits < 2**31, ~bits, bits - np.uint32(2**31)).view(np.float32).astype(np.float64)


def _histogram(cells: pl.LazyFrame, place: pl.Expr) -> pl.LazyFrame:
    """How many defined values have each ``place``."""
    return cells.drop_nulls("value").group_by(place.alias("place")).agg(count=pl.len().cast(pl.Int64))


def _quantiles(lazy: pl.LazyFrame, sums: dict[str, Frame], *, skip_first: bool) -> Frame:
    """The quantiles of each distance and variant, linear between neighbours, a column each."""
    series = _pooled(sums["groups"], ["distance", "code"]).filter(pl.col("count") > 0).sort("code", "distance")
    count = series["count"].to_numpy()[:, None]
    steps = np.array(list(QUANTILES.values())) * (count - 1)
    low = np.floor(steps).astype(np.int64)
    ranks = np.stack([low, np.ceil(steps).astype(np.int64)]) + np.cumsum(count)[:, None] - count
    lower, upper = _values_at(ranks, lazy, sums["histogram"], skip_first=skip_first)
    values = lower + (upper - lower) * (steps - low)
    return series.select("distance", "code").with_columns(
        pl.Series(q, v) for q, v in zip(QUANTILES, values.T, strict=True)
    )


def _values_at(ranks: np.ndarray, lazy: pl.LazyFrame, histogram: Frame, *, skip_first: bool) -> np.ndarray:
    """The values at ``ranks`` in the order of places, by a second pass over the buckets that hold one of them."""
    buckets, before = _located(ranks, histogram)
    wanted = pl.LazyFrame({"bucket": np.unique(buckets)})
    fine = _Running(_summed)
    for batch in _long_batches(lazy, [], skip_first=skip_first):
        placed = batch.lazy().with_columns(bucket=_place() // BUCKET_SIZE)
        chosen = _histogram(placed.join(wanted, on="bucket", how="semi"), _place())
        fine.add(chosen.collect(engine="streaming"))
    exact = fine.result().sort("place")
    ends = np.cumsum(np.append(0, exact["count"].to_numpy()))
    first = np.searchsorted(exact["place"].to_numpy(), buckets * np.uint64(BUCKET_SIZE))
    places, _ = _located(ends[first] + ranks - before, exact)
    return _values_of(places)


def _located(ranks: np.ndarray, histogram: Frame) -> tuple[np.ndarray, np.ndarray]:
    """The place on which each of ``ranks`` falls, and how many values come before that place."""
    ladder = histogram.sort("place")
    count = ladder["count"].to_numpy()
    ends = np.cumsum(count)
    index = np.searchsorted(ends, ranks, side="right")
    return ladder["place"].to_numpy()[index], ends[index] - count[index]


# Findings: the small frames of an Analysis.


def _counts(lazy: pl.LazyFrame, sums: dict[str, Frame], *, skip_first: bool) -> dict[str, int | None]:
    groups, tokens, queries = sums["groups"], sums["tokens"], sums["queries"]
    labels = [name for name in ("prompt_id", "token_position", "token_masked") if name in tokens.columns]
    first = lazy.filter(pl.col("token_position") == 0).select(pl.len())
    of = {name: groups.filter(distance=name) for name in DISTANCES}
    return {
        "rows": int(of["l2_distance"]["rows"].sum()),
        "skipped_rows": first.collect(engine="streaming").item() if skip_first else 0,
        "layers": groups["layer"].n_unique(),
        "tokens": tokens.select(labels).n_unique(),
        "heads": groups.filter(kind=2)["code"].n_unique(),
        "prompts": tokens["prompt_id"].n_unique() if "prompt_id" in labels else None,
        "query_positions": len(queries) if queries.width else None,
        **{f"null_{name}": int((part["rows"] - part["count"]).sum()) for name, part in of.items()},
    }


def _means(moments: Frame) -> Frame:
    """The groups that have a mean, without the digits that depend on the order of summation."""
    return moments.filter(pl.col("count") > 0).with_columns(pl.col("mean").round_sig_figs(SIGNIFICANT_DIGITS))


def _ranked(frame: Frame, labels: Sequence[str], *, top: int) -> Frame:
    """The ``top`` rows of each distance and kind by ``mean`` or ``value``, the greatest first, ties by ``labels``."""
    score = ["mean", "count"] if "mean" in frame.columns else ["value"]
    descending = [False, False, True, *(False for _ in labels)]
    ordered = frame.sort(["distance", "kind", score[0], *labels], descending=descending)
    best = ordered.group_by("distance", "kind", maintain_order=True).head(top)
    rank = pl.int_range(1, pl.len() + 1).over("distance", "kind").alias("rank")
    named = [_variant() if name == "code" else pl.col(name) for name in labels]
    return best.select("distance", _kind(), rank, *named, *(_rounded(name) for name in score))


def _statistics(groups: Frame, quantiles: Frame) -> Frame:
    """One row per distance and variant; ``std`` is that of a sample (n - 1) and null for a single value."""
    pooled = _pooled(groups, ["distance", "code", "kind"]).join(quantiles, on=["distance", "code"], how="left")
    spread = (pl.col("m2") / (pl.col("count") - 1)).sqrt()
    std = pl.when(pl.col("count") > 1).then(pl.when(pl.col("min") < pl.col("max")).then(spread).otherwise(0.0))
    numbers = ["mean", "std", "min", *QUANTILES, "max"]
    counts = [pl.col("count"), (pl.col("rows") - pl.col("count")).alias("null_count")]
    ordered = pooled.with_columns(std=std).sort("distance", "code")
    return ordered.select("distance", _variant(), *counts, *(_rounded(name) for name in numbers))


def _rounded(name: str) -> pl.Expr:
    if name == "count":
        return pl.col(name)
    return pl.col(name).cast(pl.Float64).round_sig_figs(SIGNIFICANT_DIGITS)


def _kind() -> pl.Expr:
    return pl.col("kind").replace_strict(dict(enumerate(KINDS)), return_dtype=_KIND).alias("kind")


def _variant() -> pl.Expr:
    head = pl.format("Head_{}", pl.col("code") - 2)
    whole = pl.when(pl.col("code") == 0).then(pl.lit("Full")).otherwise(pl.lit("Attn"))
    return pl.when(pl.col("code") < 2).then(whole).otherwise(head).alias("variant")


def _part(frame: Frame, kind: str, distance: str) -> Frame:
    return frame.filter(kind=kind, distance=distance).drop("kind", "distance")


# The report.


def _headline(analysis: Analysis) -> list[str]:
    counts = analysis.counts
    sizes = [_plural(counts[name], name[:-1]) for name in ("rows", "layers", "tokens", "heads")]
    sizes.append(_plural(counts["prompts"], "prompt") if counts["prompts"] else "no prompt_id: read as one prompt")
    if counts["query_positions"]:
        sizes.append(_plural(counts["query_positions"], "query position"))
    nulls = ", ".join(f"{counts[f'null_{name}']:,} of {label}" for name, label in DISTANCES.items())
    lines = [
        f"Impact of masked tokens: {', '.join(sizes)}",
        f"Undefined cells (null), counted in no mean: {nulls}",
        "Full, Attn and heads are measured in different spaces: compare distances within one kind only.",
    ]
    skipped = f"Position 0 is left out of everything below ({_plural(counts['skipped_rows'], 'row')})."
    return [*lines, skipped] if analysis.skip_first else lines


def _plural(number: int | None, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _kind_report(analysis: Analysis, kind: str, limit: int | None) -> list[str]:
    over = " and heads" if kind == "Head" else ""
    rankings = {
        f"Tokens, mean over layers{over}": analysis.tokens,
        f"Layers, mean over tokens{over}": analysis.layers,
        "Heads, mean over tokens": analysis.heads,
        "Single cells": analysis.cells,
    }
    lines = [f"{kind.upper()}: {KINDS[kind]}"]
    for title, frame in rankings.items():
        parts = {label: _part(frame, kind, name).head(limit or len(frame)) for name, label in DISTANCES.items()}
        if any(len(part) for part in parts.values()):
            lines += ["", title, *_side_by_side(*(_aligned(_ranking(part, label)) for label, part in parts.items()))]
        if frame is analysis.tokens:
            lines += _sink_note(parts)
    return lines


def _sink_note(tokens: dict[str, Frame]) -> list[str]:
    leads = [label for label, part in tokens.items() if part["token_position"].head(1).to_list() == [0]]
    note = f"  Position 0 ranks first ({', '.join(leads)}): often an attention sink. --skip-first leaves it out."
    return [note] if leads else []


def _ranking(part: Frame, distance: str) -> Rows:
    """The rows of a ranking as text under a header: rank, score, then the labels, the token last."""
    titles = {"layer": "layer", "variant": "variant", "query_position": "query", "token_position": "position"}
    titles |= {"prompt_id": "prompt", "token_masked": "token"}
    shown = [name for name in titles if name in part.columns]
    if "variant" in shown and not part["variant"].str.starts_with("Head").any():
        shown.remove("variant")
    score = "mean" if "mean" in part.columns else "value"
    header = ["#", f"{distance} {score}", *(titles[name] for name in shown)]
    rows = [
        [str(row["rank"]), _number(row[score]), *(_label(name, row[name]) for name in shown)] for row in part.to_dicts()
    ]
    return [header, *rows]


def _label(name: str, value: object) -> str:
    if name == "token_masked":
        return _quoted(str(value), width=TEXT_WIDTH)
    return _cut("".join(sign if sign.isprintable() else "?" for sign in str(value)), width=TEXT_WIDTH)


def _quoted(token: str, *, width: int) -> str:
    """A token as Python would write it: spaces stay visible, line breaks are escaped, no direction mark leaks out."""
    text = _cut(repr(token), width=width)
    mixed = any(unicodedata.bidirectional(sign) in ("R", "AL") for sign in text)
    return f"{text}\N{LEFT-TO-RIGHT MARK}" if mixed else text


def _cut(text: str, *, width: int) -> str:
    if _width(text) <= width:
        return text
    text = text[: 2 * width]
    while _width(text) >= width:
        text = text[:-1]
    return f"{text}…"


def _width(text: str) -> int:
    """Columns that ``text`` takes on a terminal."""
    marks = sum(unicodedata.category(sign) in ("Mn", "Me", "Cf") for sign in text)
    return len(text) - marks + sum(unicodedata.east_asian_width(sign) in ("W", "F") for sign in text)


def _number(value: float | None) -> str:
    """Three significant digits, two where the exponent is long, in at most seven characters (a sign not counted)."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    if 1e-4 <= abs(value) < 1e6:
        return f"{value:#.3g}".rstrip(".") if abs(value) < 999.5 else f"{value:.0f}"
    digits, _, exponent = f"{value:.2e}".partition("e")
    return f"{digits}e{int(exponent)}" if abs(int(exponent)) < 10 else f"{value:.1e}"


def _aligned(rows: Rows, *, gap: str = "  ") -> list[str]:
    """Rows of text in columns; numbers to the right, other text to the left."""
    widths = [max(map(_width, column)) for column in zip(*rows, strict=True)]
    right = [
        all(re.fullmatch(r"-|-?[0-9][0-9.,e+-]*", cell) for cell in column[1:]) for column in zip(*rows, strict=True)
    ]
    return [gap.join(_padded(*cell) for cell in zip(row, widths, right, strict=True)).rstrip() for row in rows]


def _padded(text: str, width: int, right: bool) -> str:
    space = " " * (width - _width(text))
    return space + text if right else text + space


def _side_by_side(left: list[str], right: list[str]) -> list[str]:
    """Two tables beside each other where both are narrow enough, otherwise one below the other."""
    if max(map(_width, left + right)) > HALF_WIDTH:
        return [*(f"  {line}" for line in left), "", *(f"  {line}" for line in right)]
    height = max(len(left), len(right))
    pairs = zip(*(lines + [""] * (height - len(lines)) for lines in (left, right)), strict=True)
    return [f"  {_padded(one, HALF_WIDTH, right=False)}  {other}".rstrip() for one, other in pairs]


def _profile_report(profile: Frame, distance: str) -> list[str]:
    """The mean of each layer and kind, with bars as shares of the greatest mean of the kind."""
    part = profile.filter(distance=distance)
    kinds = part["kind"].unique(maintain_order=True).to_list()
    means = {(kind, layer): mean for kind, layer, mean in part.select("kind", "layer", "mean").iter_rows()}
    greatest = {kind: part.filter(kind=kind)["mean"].max() for kind in kinds}
    rows = [["layer", *(title for kind in kinds for title in (kind, ""))]]
    for layer in part["layer"].unique().sort():
        found = [(means.get((kind, layer)), greatest[kind]) for kind in kinds]
        rows.append([str(layer), *(text for mean, most in found for text in (_number(mean), _bar(mean, most)))])
    return [
        f"PROFILE: mean {DISTANCES[distance]} distance of each layer",
        "",
        *(f"  {line}" for line in _aligned(rows)),
    ]


def _bar(value: float | None, greatest: Any) -> str:
    eighths = round(max(value / greatest, 0) * BAR_WIDTH * 8) if value and greatest > 0 else 0
    return ("█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8]).strip().ljust(BAR_WIDTH)


def _statistics_report(statistics: Frame, distance: str) -> list[str]:
    part = statistics.filter(distance=distance).drop("distance").rename({"null_count": "null"})
    counts = ("variant", "count", "null")
    rows = [[str(row[name]) if name in counts else _number(row[name]) for name in row] for row in part.to_dicts()]
    return [
        f"STATISTICS: {DISTANCES[distance]} distance of each variant",
        "",
        *_aligned([part.columns, *rows], gap=" "),
    ]
