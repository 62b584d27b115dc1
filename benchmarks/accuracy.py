"""How exact the distances are: engine and naive way in working precision, both against float64.

The truth of a cell is the naive way on the float64 oracle where that resolves it, and the engine in float64 below.
The naive way in float64 still subtracts two nearly equal vectors, so it cannot tell an L2 distance below some 1e-13 of
the vector, nor a cosine distance below some 1e-16. Where it resolves a cell the two float64 answers have to agree.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from benchmarks.compare import Cells, Quantiles, cells_of, quantiles, relative_errors
from benchmarks.machine import describe_machine
from benchmarks.naive import NaiveRun, run_naive
from benchmarks.options import Options
from benchmarks.oracle import float64_model
from benchmarks.report import Report, Row, Table
from benchmarks.workloads import Workload, load_workload
from engine import AttentionMasker

LENGTH = 48
PEAK = 2.7
"""Peaked attention, as trained models have it: see ``workloads.random_model``."""
RESOLVED = 1e-9
"""Share of the baseline vector (L2), or cosine distance, above which the naive way in float64 is the truth."""
FLOAT64_RTOL = 1e-4
"""What the two float64 answers may differ by on resolved cells: 1e-13 of the vector over ``RESOLVED``."""
SITES = {"Full": slice(0, 1), "Attn": slice(1, 2), "Head": slice(2, None)}
DISTANCES = {"L2": 0, "cosine": 1}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One workload: errors of each provider by site and distance, and how the truth was found."""

    workload: Workload
    errors: dict[tuple[str, str, str], Quantiles]
    float64_difference: float
    resolved: float
    same_gaps: bool


def run_accuracy(options: Options, *, command: str) -> Report:
    """The accuracy suite: by default the demo model, and a random model of 6 layers with peaked attention."""
    found = [_measure(name, options) for name in options.shapes_or("demo", "small")]
    return Report(
        suite="accuracy",
        command=command,
        provenance=describe_machine(options.device),
        conditions=[
            f"relative error of the distances in {options.dtype} against float64, all layers and tokens",
            "weights hold bfloat16 values exactly, in every dtype",
            *(["QUICK RUN: figures are not meant to be reported"] if options.quick else []),
        ],
        tables=[_table(measured) for measured in found],
        rows=[row for measured in found for row in _rows(measured)],
        notes=[_truth_note(measured) for measured in found],
        figures=dict(figure for measured in found for figure in _figures(measured)),
        checks=dict(check for measured in found for check in _checks(measured)),
    )


def _measure(name: str, options: Options) -> Measured:
    workload = load_workload(
        name, length=options.length_or(LENGTH), device=options.device, dtype=options.dtype, peak=PEAK
    )
    truth, resolved, difference = _truth(workload)
    naive = run_naive(workload.model, workload.token_ids)
    table = AttentionMasker(workload.model).run(workload.token_ids)
    found = {"engine": cells_of(table, like=truth), "naive": naive.distances}
    return Measured(
        workload=workload,
        errors={
            (provider, site, distance): quantiles(_select(relative_errors(cells, truth), site, distance))
            for site in SITES
            for distance in DISTANCES
            for provider, cells in found.items()
        },
        float64_difference=difference,
        resolved=float(resolved.mean()),
        same_gaps=np.array_equal(np.isnan(found["engine"]), np.isnan(truth)),
    )


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


def _select(errors: Float[np.ndarray, "l v site 2"], site: str, distance: str) -> Float[np.ndarray, "l v part"]:
    return errors[:, :, SITES[site], DISTANCES[distance]]


def _table(measured: Measured) -> Table:
    rows = tuple(
        (site, distance, provider, *(f"{value:.1e}" for value in (q.median, q.p99, q.maximum)), str(q.cells))
        for (provider, site, distance), q in measured.errors.items()
    )
    header = ("site", "distance", "provider", "median", "p99", "max", "cells")
    return Table(title=f"Relative errors: {measured.workload.label}", header=header, rows=rows)


def _rows(measured: Measured) -> Iterator[Row]:
    """Per provider, site and distance: three quantiles of the errors, each a figure of its own."""
    where = measured.workload
    for (provider, site, distance), q in measured.errors.items():
        for quantile, value in (("median", q.median), ("p99", q.p99), ("max", q.maximum)):
            metric = f"relative error, {site} {distance}, {quantile}"
            yield Row.of(provider, metric, "1", (value,), workload=where.name, x=len(where.token_ids))


def _figures(measured: Measured) -> Iterator[tuple[str, float]]:
    for (provider, site, distance), q in measured.errors.items():
        yield f"{measured.workload.label}: {provider} {site} {distance} median relative error", q.median


def _checks(measured: Measured) -> Iterator[tuple[str, bool]]:
    label, difference = measured.workload.label, measured.float64_difference
    yield (
        f"{label}: the engine and the naive way agree in float64 within {FLOAT64_RTOL:g} on resolved cells; "
        f"largest difference {difference:.1e}",
        difference <= FLOAT64_RTOL,
    )
    yield f"{label}: the same cells are undefined", measured.same_gaps


def _truth_note(measured: Measured) -> str:
    return (
        f"{measured.workload.label}: the truth is the naive way in float64 for {measured.resolved:.1%} of the "
        f"distances (L2 above {RESOLVED:g} of the baseline vector, cosine above {RESOLVED:g}), and the engine in "
        "float64 for the others"
    )
