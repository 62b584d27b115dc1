"""Whether the questions that are timed are answered right: a few cells of each beside forwards of their own."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from benchmarks.compare import NAIVE_TOLERANCES, agreement, cells_of
from benchmarks.masked_pass import Edge, Shown, masked_pass
from benchmarks.naive import run_naive
from benchmarks.trials import KNOCKOUT, LAYERS, OUTPUT, QUERIES, Trial
from benchmarks.workloads import Workload
from engine import AttentionMasker


@dataclass(frozen=True)
class Closeness:
    """How close two figures in nats must be."""

    rtol: float
    atol: float
    why: str


NATS = {
    "float64": Closeness(1e-5, 1e-4, "Hugging Face's RMSNorm stays in float32 in a float64 model"),
    "float32": Closeness(1e-2, 1e-2, "random logits of some tens, each rounded through all layers"),
    "bfloat16": Closeness(0.5, 5.0, "three significant digits of logits of some tens"),
}
CHANGES = ("kl_divergence", "answer_logprob_change")


def check_answers(trial: Trial, workload: Workload, masker: AttentionMasker) -> dict[str, bool]:
    """Statements about the engine's answers that have to hold, each with whether it does."""
    ways: dict[str, Callable[[Trial, Workload, AttentionMasker], Iterator[tuple[str, bool]]]] = {
        KNOCKOUT: _check_output,
        OUTPUT: _check_output,
        LAYERS: _check_layers,
        QUERIES: _check_queries,
    }
    name = f"{workload.label}, {trial.name}"
    return {f"{name}: {text}": held for text, held in ways[trial.name](trial, workload, masker)}


def some(count: int) -> list[int]:
    """The first, the middle and the last of ``range(count)``."""
    return sorted({0, count // 2, count - 1})


def _hidden(trial: Trial, token: int, length: int) -> list[Edge]:
    """The edges that are cut: from the final position, or from all positions but the token itself."""
    queries = [length - 1] if trial.words["hidden_from"] == "query" else [q for q in range(length) if q != token]
    return [(query, token) for query in queries]


def _pass(trial: Trial, workload: Workload, token: int, layers: Collection[int]) -> Shown:
    hidden = _hidden(trial, token, len(workload.token_ids))
    return masked_pass(workload.model, workload.token_ids, layers=layers, hidden=hidden)


def _check_output(trial: Trial, workload: Workload, masker: AttentionMasker) -> Iterator[tuple[str, bool]]:
    """The final state, KL and change of the answer's log-probability, each cell from a forward of its own."""
    everywhere = trial.words["cut"] == "all"
    layers, tokens = some(workload.num_layers), some(len(workload.token_ids))
    chosen: dict[str, Any] = {"tokens": tokens} | ({} if everywhere else {"layers": layers})
    table = masker.run(workload.token_ids, **trial.words, **chosen)
    plain = masked_pass(workload.model, workload.token_ids)
    answer = int(plain.log_probs.argmax())
    windows = [range(workload.num_layers)] if everywhere else [[layer] for layer in layers]
    masked = [_pass(trial, workload, token, window) for window in windows for token in tokens]
    kl = [float((plain.log_probs.exp() * (plain.log_probs - each.log_probs)).sum()) for each in masked]
    change = [float(each.log_probs[answer] - plain.log_probs[answer]) for each in masked]
    moved = [float((each.state - plain.state).double().norm()) for each in masked]
    yield _states(table, np.array(moved), float(plain.state.double().norm()), workload.dtype)
    yield _nats(table, np.stack([kl, change], axis=1), workload.dtype)


def _states(table: pl.DataFrame, expected: np.ndarray, size: float, dtype: str) -> tuple[str, bool]:
    """The L2 distance of the final state, where it is large enough to be compared."""
    tolerance, found = NAIVE_TOLERANCES[dtype], table["l2_distance"].cast(pl.Float64).to_numpy()
    if found.shape != expected.shape:
        return f"{len(found)} rows, where {len(expected)} are expected", False
    chosen = expected > tolerance.floor * size
    worst = float((np.abs(found - expected)[chosen] / expected[chosen]).max(initial=0.0))
    text = f"L2 of the final state agrees with forwards under 4-D masks within {tolerance.rtol:g} ({tolerance.why})"
    return f"{text}: {chosen.sum()} cells, largest error {worst:.1e}", bool(chosen.any()) and worst <= tolerance.rtol


def _nats(table: pl.DataFrame, expected: np.ndarray, dtype: str) -> tuple[str, bool]:
    """What a random model answers hardly changes, so that this alone would say little."""
    close = NATS[dtype]
    found = table.select(pl.col(CHANGES).cast(pl.Float64).fill_null(np.nan)).to_numpy()
    if found.shape != expected.shape:
        return f"{len(found)} rows, where {len(expected)} are expected", False
    gaps, largest = np.abs(found - expected), np.abs(expected).max()
    text = (
        f"KL and change of the answer's log-probability agree with {len(expected)} forwards under 4-D masks, within "
        f"{close.rtol:g} and {close.atol:g} nats ({close.why}): largest gap {gaps.max():.1e}, largest {largest:.2g}"
    )
    return text, bool((gaps <= close.atol + close.rtol * np.abs(expected)).all())


def _check_layers(trial: Trial, workload: Workload, masker: AttentionMasker) -> Iterator[tuple[str, bool]]:
    """The L2 distance of Full in every layer, where it is large enough to be compared."""
    tolerance, tokens = NAIVE_TOLERANCES[workload.dtype], some(len(workload.token_ids))
    table = masker.run(workload.token_ids, **trial.words, tokens=tokens)
    full = table.filter(pl.col("variant").cast(pl.String) == "Full")["l2_distance"].cast(pl.Float64).fill_null(np.nan)
    found = full.to_numpy().reshape(workload.num_layers, len(tokens))
    plain = masked_pass(workload.model, workload.token_ids).updates
    everywhere = range(workload.num_layers)
    masked = [_pass(trial, workload, token, everywhere).updates for token in tokens]
    expected = np.stack([(each - plain).double().norm(dim=-1).cpu().numpy() for each in masked], axis=1)
    chosen = expected > tolerance.floor * plain.double().norm(dim=-1).cpu().numpy()[:, None]
    worst = float((np.abs(found - expected)[chosen] / expected[chosen]).max(initial=0.0))
    yield (
        f"L2 of Full agrees with forwards under 4-D masks within {tolerance.rtol:g} ({tolerance.why}): "
        f"{chosen.sum()} cells, largest error {worst:.1e}",
        bool(chosen.any()) and worst <= tolerance.rtol,
    )


def _check_queries(trial: Trial, workload: Workload, masker: AttentionMasker) -> Iterator[tuple[str, bool]]:
    """A query's rows are those of the naive way on the prompt that ends there."""
    layers, length = some(workload.num_layers), len(workload.token_ids)
    tolerance = NAIVE_TOLERANCES[workload.dtype]
    table = masker.run(workload.token_ids, **trial.words, layers=layers)
    for query in sorted({length // 2, length - 1}):
        naive = run_naive(workload.model, workload.token_ids[: query + 1], layers=layers)
        rows = table.filter(pl.col("query_position") == query)
        if rows.height != naive.distances[..., 0].size:
            yield f"query {query} has {rows.height} rows", False
            continue
        found = cells_of(rows, like=naive.distances)
        errors, agrees = agreement(found, naive.distances, sizes=naive.sizes, tolerance=tolerance)
        yield (
            f"query {query} agrees with the naive way on the prompt that ends there, L2 within {tolerance.rtol:g} "
            f"({tolerance.why}): {errors.cells} cells, largest error {errors.maximum:.1e}",
            agrees,
        )
