"""Whether the engine's table is right: beside the naive way, and beside the float64 oracle."""

import copy

from transformers import PreTrainedModel

from benchmarks.compare import NAIVE_TOLERANCES, ORACLE_TOLERANCES, Tolerance, agreement, cells_of, same_labels
from benchmarks.naive import NaiveRun, naive_table, run_naive
from benchmarks.oracle import float64_model
from benchmarks.workloads import Workload, is_small
from engine import AttentionMasker

MOST_TOKENS = 16
"""Longer prompts are checked at three tokens; models that are not small in three layers, and not against float64."""


def check_engine(workload: Workload, masker: AttentionMasker) -> dict[str, bool]:
    """Statements about the masker's answers that have to hold, each with whether it does."""
    small = is_small(workload.model)
    layers = _some(workload.num_layers, most=workload.num_layers if small else 0)
    tokens = _some(len(workload.token_ids), most=MOST_TOKENS)
    model, name = _comparable(workload.model)
    naive = run_naive(model, workload.token_ids, layers=layers, tokens=tokens)
    checks = _check(workload, masker, naive, NAIVE_TOLERANCES[workload.dtype], against=f"naive {name}")
    if small:
        oracle = run_naive(float64_model(workload.model), workload.token_ids, tokens=tokens)
        checks |= _check(workload, masker, oracle, ORACLE_TOLERANCES[workload.dtype], against="naive float64")
    return checks


def _comparable(model: PreTrainedModel) -> tuple[PreTrainedModel, str]:
    """The model in the dtype that the naive way runs in, and that dtype's name."""
    name = str(model.dtype).removeprefix("torch.")
    return (copy.deepcopy(model).float(), "float32") if name == "bfloat16" else (model, name)


def _some(count: int, *, most: int) -> list[int]:
    """All of ``range(count)`` up to ``most``, else the first, the middle and the last."""
    return list(range(count)) if count <= most else sorted({0, count // 2, count - 1})


def _check(
    workload: Workload, masker: AttentionMasker, naive: NaiveRun, tolerance: Tolerance, *, against: str
) -> dict[str, bool]:
    table = masker.run(workload.token_ids, layers=naive.layers, tokens=naive.tokens)
    found = cells_of(table, like=naive.distances)
    errors, agrees = agreement(found, naive.distances, sizes=naive.sizes, tolerance=tolerance)
    name = f"{workload.label}, {len(naive.layers)} layers x {len(naive.tokens)} tokens"
    text = (
        f"{name}: engine in {workload.dtype} agrees with {against}, L2 within {tolerance.rtol:g} where it exceeds "
        f"{tolerance.floor:g} of the baseline vector ({tolerance.why}): {errors.cells} cells, largest error "
        f"{errors.maximum:.1e}"
    )
    return {text: agrees, f"{name}: same rows in the same order as {against}": same_labels(table, naive_table(naive))}
