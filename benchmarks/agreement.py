"""Whether the engine's table is right: beside the naive way in the same dtype, and beside the float64 oracle."""

from benchmarks.compare import NAIVE_TOLERANCES, ORACLE_TOLERANCES, Tolerance, agreement, cells_of, same_labels
from benchmarks.naive import NaiveRun, naive_table, run_naive
from benchmarks.oracle import float64_model
from benchmarks.workloads import Workload
from engine import AttentionMasker

SMALL = 50_000_000
"""Parameters up to which every layer is checked, and against float64 too; of larger models three layers are."""


def check_engine(workload: Workload, *, tokens: list[int], dtype: str) -> dict[str, bool]:
    """Statements about the engine's answers that have to hold, each with whether it does."""
    last = workload.num_layers - 1
    small = sum(parameter.numel() for parameter in workload.model.parameters()) <= SMALL
    layers = list(range(last + 1)) if small else [0, last // 2, last]
    naive = run_naive(workload.model, workload.token_ids, layers=layers, tokens=tokens)
    checks = _check(workload, naive, NAIVE_TOLERANCES[dtype], against=f"naive {dtype}")
    if small:
        oracle = run_naive(float64_model(workload.model), workload.token_ids, tokens=tokens)
        checks |= _check(workload, oracle, ORACLE_TOLERANCES[dtype], against="naive float64")
    return checks


def _check(workload: Workload, naive: NaiveRun, tolerance: Tolerance, *, against: str) -> dict[str, bool]:
    table = AttentionMasker(workload.model).run(workload.token_ids, layers=naive.layers, tokens=naive.tokens)
    found = cells_of(table, like=naive.distances)
    errors, agrees = agreement(found, naive.distances, sizes=naive.sizes, tolerance=tolerance)
    name = f"{workload.label}, {len(naive.layers)} layers"
    text = (
        f"{name}: engine agrees with {against}, L2 within {tolerance.rtol:g} where it exceeds {tolerance.floor:g} of "
        f"the baseline vector ({tolerance.why}): {errors.cells} cells, largest error {errors.maximum:.1e}"
    )
    return {text: agrees, f"{name}: same rows in the same order as {against}": same_labels(table, naive_table(naive))}
