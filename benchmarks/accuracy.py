"""How exact the distances are: engine and naive way in working precision, both against float64.

The truth of a cell is the naive way on the float64 oracle where that resolves it, and the engine in float64 below.
The naive way in float64 still subtracts two nearly equal vectors, so it cannot tell an L2 distance below some 1e-13 of
the vector, nor a cosine distance below some 1e-16. Where it resolves a cell the two float64 answers have to agree, and
errors are given for these cells alone too: their truth owes nothing to the engine.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Shaped

from benchmarks.calls import ENGINE, FIRST, NAIVE, SPLIT, WARMUPS, split_masker
from benchmarks.compare import Cells, Quantiles, cells_of, quantiles, relative_errors
from benchmarks.machine import describe_machine
from benchmarks.naive import NaiveRun, run_naive
from benchmarks.options import Options
from benchmarks.oracle import float64_model
from benchmarks.report import Report, Row, Table
from benchmarks.workloads import Workload, load_workload
from engine import AttentionMasker

LENGTH = 48
PEAKS = (2.7, 1.0)
"""Peaked attention, as trained models have it, and mild attention: see ``workloads.random_model``."""
DTYPES = ("float32", "bfloat16")
RESOLVED = 1e-9
"""Share of the baseline vector (L2), or cosine distance, above which the naive way in float64 is the truth."""
FLOAT64_RTOL = 1e-4
"""What the two float64 answers may differ by on resolved cells: 1e-13 of the vector over ``RESOLVED``."""
SCOPES = ("all cells", "resolved cells")
SITES = {"Full": slice(0, 1), "Attn": slice(1, 2), "Head": slice(2, None)}
DISTANCES = {"L2": 0, "cosine": 1}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One workload: errors by (scope, site, distance, provider), and how the truth was found."""

    workload: Workload
    errors: dict[tuple[str, str, str, str], Quantiles]
    float64_difference: float
    resolved: float
    same_gaps: bool


def run_accuracy(options: Options, *, command: str) -> Report:
    """The accuracy suite: by default in both dtypes the demo model, and random models of 6 layers, whose attention is
    peaked or mild.
    """
    provenance = describe_machine(options.device)
    dtypes = options.dtypes_or(*DTYPES)
    found = [measured for dtype in dtypes for measured in measure_errors(replace(options, dtypes=(dtype,)))]
    return Report(
        suite="accuracy",
        command=command,
        provenance=provenance,
        conditions=[
            f"relative error of the distances in {' and '.join(dtypes)} against float64, all layers and tokens",
            "weights hold bfloat16 values exactly, in every dtype",
            f"{ENGINE}: steady state; {FIRST}: on a new AttentionMasker, before weights are laid out anew",
            *options.warning,
        ],
        tables=error_tables(found),
        rows=error_rows(found),
        notes=[truth_note(measured) for measured in found],
        figures=dict(figure for measured in found for figure in _figures(measured)),
        checks=error_checks(found),
        judged=not options.quick,
    )


def measure_errors(options: Options, *, split: bool = False) -> list[Measured]:
    """The errors on every shape and length, on the device and in the dtype asked for; ``split`` adds the engine with
    split products.
    """
    return [
        _measure(name, length, peak, options, split=split)
        for name in options.shapes_or("demo", "small")
        for length in options.lengths_or(LENGTH)
        for peak in (PEAKS[:1] if name == "demo" else PEAKS)
    ]


def error_tables(found: Sequence[Measured]) -> list[Table]:
    """One table a workload and scope."""
    return [_table(measured, scope) for measured in found for scope in _scopes(measured.workload.dtype)]


def error_rows(found: Sequence[Measured]) -> list[Row]:
    """The quantiles of all errors."""
    return [row for measured in found for row in _rows(measured)]


def error_checks(found: Sequence[Measured]) -> dict[str, bool]:
    """Statements that have to hold about the truth, and about which cells are undefined."""
    return dict(check for measured in found for check in _checks(measured))


def _scopes(dtype: str) -> tuple[str, ...]:
    """Without the cells whose truth is the engine in float64 when that is what is measured."""
    return SCOPES[1:] if dtype == "float64" else SCOPES


def _measure(name: str, length: int, peak: float, options: Options, *, split: bool) -> Measured:
    workload = load_workload(name, length=length, device=options.device, dtype=options.dtype, peak=peak)
    truth, resolved, difference = _truth(workload)
    found = _providers(workload, like=truth)
    if split:
        found[SPLIT] = cells_of(split_masker(workload.model).run(workload.token_ids), like=truth)
    kept = {scope: resolved | (scope == SCOPES[0]) for scope in _scopes(options.dtype)}
    return Measured(
        workload=workload,
        errors={
            (scope, site, distance, provider): quantiles(
                _part(relative_errors(cells, truth), site, distance)[_part(kept[scope], site, distance)]
            )
            for scope in kept
            for site in SITES
            for distance in DISTANCES
            for provider, cells in found.items()
        },
        float64_difference=difference,
        resolved=float(resolved.mean()),
        same_gaps=np.array_equal(np.isnan(found[ENGINE]), np.isnan(truth)),
    )


def _providers(workload: Workload, *, like: Cells) -> dict[str, Cells]:
    """What is measured; the naive way also with its distances reduced in float64, from the same forwards."""
    masker = AttentionMasker(workload.model)
    first, *_, steady = (masker.run(workload.token_ids) for _ in range(1 + WARMUPS))
    return {
        ENGINE: cells_of(steady, like=like),
        FIRST: cells_of(first, like=like),
        NAIVE: run_naive(workload.model, workload.token_ids).distances,
        f"{NAIVE}, float64 distances": run_naive(workload.model, workload.token_ids, wide=True).distances,
    }


def _truth(workload: Workload) -> tuple[Cells, Bool[np.ndarray, "l v site 2"], float]:
    """The true distances, which of them the naive way resolves, and how far the two float64 answers differ there."""
    oracle = float64_model(workload.model)
    naive = run_naive(oracle, workload.token_ids)
    engine = cells_of(AttentionMasker(oracle).run(workload.token_ids), like=naive.distances)
    resolved = _resolved(naive)
    difference = relative_errors(engine, naive.distances)[resolved]
    return np.where(resolved, naive.distances, engine), resolved, float(difference.max(initial=0.0))


def _resolved(naive: NaiveRun) -> Bool[np.ndarray, "l v site 2"]:
    """Cells that the naive way can tell from rounding."""
    l2, cosine = np.moveaxis(naive.distances, -1, 0)
    return np.stack([l2 > RESOLVED * naive.sizes[:, None], cosine > RESOLVED], axis=-1)


def _part(cells: Shaped[np.ndarray, "l v site 2"], site: str, distance: str) -> Shaped[np.ndarray, "l v part"]:
    return cells[:, :, SITES[site], DISTANCES[distance]]


def _table(measured: Measured, scope: str) -> Table:
    rows = tuple(
        (site, distance, provider, *(f"{value:.1e}" for value in (q.median, q.p99, q.maximum)), str(q.cells))
        for (within, site, distance, provider), q in measured.errors.items()
        if within == scope
    )
    header = ("site", "distance", "provider", "median", "p99", "max", "cells")
    return Table(title=f"Relative errors: {measured.workload.label}, {scope}", header=header, rows=rows)


def _rows(measured: Measured) -> Iterator[Row]:
    """Per scope, site, distance and provider: three quantiles of the errors, each a figure of its own."""
    for (scope, site, distance, provider), q in measured.errors.items():
        for quantile, value in (("median", q.median), ("p99", q.p99), ("max", q.maximum)):
            metric = f"relative error, {site} {distance}, {scope}, {quantile}"
            yield Row.of(provider, metric, "1", (value,), **measured.workload.labels)


def _figures(measured: Measured) -> Iterator[tuple[str, float]]:
    for (scope, site, distance, provider), q in measured.errors.items():
        yield f"{measured.workload.label}: {provider}, {site} {distance}, {scope}, median relative error", q.median


def _checks(measured: Measured) -> Iterator[tuple[str, bool]]:
    label, difference = measured.workload.label, measured.float64_difference
    yield (
        f"{label}: the engine and the naive way agree in float64 within {FLOAT64_RTOL:g} on resolved cells; "
        f"largest difference {difference:.1e}",
        difference <= FLOAT64_RTOL,
    )
    yield f"{label}: the same cells are undefined", measured.same_gaps


def truth_note(measured: Measured) -> str:
    return (
        f"{measured.workload.label}: the truth is the naive way in float64 for {measured.resolved:.1%} of the "
        f"distances (L2 above {RESOLVED:g} of the baseline vector, cosine above {RESOLVED:g}), and the engine in "
        "float64 for the others"
    )
