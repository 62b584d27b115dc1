"""Parity of every family with Hugging Face: the largest errors of logits, residual streams and tables on the zoo.

    python -m benchmarks.parity --output DIR

For each tiny model of ``zoo``, in float64 and in float32: logits and every layer's residual stream beside transformers'
eager forward in the same dtype, largest difference over largest value; and every distance of the table beside the naive
way on the float64 oracle, relative to the distance, or to ``FLOOR`` where it is smaller than that.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from benchmarks.machine import describe_machine
from benchmarks.naive import NaiveRun, run_naive
from benchmarks.options import Options
from benchmarks.oracle import float64_model
from benchmarks.report import Labels, Report, Row, Table
from benchmarks.species import Case
from benchmarks.zoo import CASES, build, token_ids
from engine import AttentionMasker
from engine.runs.impact import Impact

FLOOR = 1e-6
"""Share of the baseline vector (L2), or cosine distance, below which errors are not given as shares of the distance."""
METRICS = ("logits", "streams", "L2", "cosine")
BOUNDS = {"float64": (1e-13, 1e-13, 1e-8, 1e-8), "float32": (2e-5, 2e-5, 2e-4, 4e-4)}
"""What the largest errors of ``METRICS`` have to stay below."""


@dataclass(frozen=True)
class Measured:
    """The errors of one model in one dtype, in the order of ``METRICS``."""

    case: Case
    dtype: str
    errors: tuple[float, float, float, float]


def run_parity(options: Options, *, command: str) -> Report:
    """The parity suite: all variations of all families; in a quick run the first of each."""
    provenance = describe_machine("cpu")
    dtypes = options.dtypes_or("float64", "float32")
    chosen = [case for case in CASES if not options.quick or not case.variation]
    found = [Measured(case, dtype, measure(case, dtype)) for case in chosen for dtype in dtypes]
    return Report(
        suite="parity",
        command=command,
        provenance=provenance,
        conditions=[
            *options.warning,
            f"{len(chosen)} tiny models with random weights; prompts of {min(map(_length, chosen))} to "
            f"{max(map(_length, chosen))} tokens; every token masked in every layer",
            "logits, streams: beside transformers' eager forward in the same dtype, largest difference / largest value",
            f"L2, cosine: beside the naive way in float64, over the distance, at least {FLOOR:g} (of the vector)",
        ],
        tables=[*_tables(found, dtypes)],
        rows=[row for measured in found for row in _rows(measured)],
        checks={f"{m.case.name} in {m.dtype} is within the bounds": _within(m) for m in found if not _within(m)}
        or {"every error is within its bound": True},
    )


def measure(case: Case, dtype: str) -> tuple[float, float, float, float]:
    """The largest errors of one model, in the order of ``METRICS``."""
    narrow, prompt = build(case), token_ids(case)
    truth = float64_model(narrow)
    model = truth if dtype == "float64" else narrow
    impact = AttentionMasker(model).measure(prompt)
    assert isinstance(impact, Impact)
    return *forward_errors(model, prompt), *table_errors(impact.distances, run_naive(truth, prompt, wide=True))


@torch.inference_mode()
def forward_errors(model: Any, prompt: Sequence[int]) -> tuple[float, float]:
    """Logits of the final token and streams of all layers, beside the model's own forward."""
    from engine.kernels.batches import make_batch
    from engine.sweeps.sweep import sweep
    from engine.text.knockouts import single_tokens

    theirs = model(torch.tensor([list(prompt)]), output_hidden_states=True, use_cache=False)
    decoder = AttentionMasker(model).decoder
    batch = make_batch([list(prompt)], [single_tokens(len(prompt), [0])], torch.device("cpu"))
    streams = [readout.residual for readout in sweep(decoder, batch, layers=range(len(decoder.layers)))]
    logits = _error(decoder.logits(streams[-1])[0], theirs.logits[0, -1])
    pairs = zip(streams[:-1], theirs.hidden_states[1:-1], strict=True)
    return logits, max((_error(ours, stream[0]) for ours, stream in pairs), default=0.0)


def table_errors(ours: Float[np.ndarray, "l v site 2"], naive: NaiveRun) -> tuple[float, float]:
    """L2 and cosine distances beside the naive ones; infinite where other cells are undefined."""
    if not np.array_equal(np.isnan(ours), np.isnan(naive.distances)):
        return np.inf, np.inf
    floors = FLOOR * np.stack([naive.sizes, np.ones_like(naive.sizes)], axis=-1)[:, None]
    errors = np.abs(ours - naive.distances) / np.maximum(naive.distances, floors)
    l2, cosine = np.nan_to_num(errors).max(axis=(0, 1, 2))
    return float(l2), float(cosine)


def _error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())


def _length(case: Case) -> int:
    return case.length


def _within(measured: Measured) -> bool:
    return all(error < bound for error, bound in zip(measured.errors, BOUNDS[measured.dtype], strict=True))


def _rows(measured: Measured) -> Iterator[Row]:
    case = measured.case
    labels = Labels(workload=case.name, dtype=measured.dtype, x=case.length)
    for metric, error in zip(METRICS, measured.errors, strict=True):
        yield Row.of(case.architecture, metric, "relative error", [error], **labels)


def _tables(found: Sequence[Measured], dtypes: Sequence[str]) -> Iterator[Table]:
    """The largest errors of every family, then those of every model."""
    figures = [f"{metric} {dtype}" for dtype in dtypes for metric in METRICS]
    for title, label in (("Largest errors by family", "family"), ("Largest errors by model", "name")):
        lines = dict.fromkeys(getattr(measured.case, label) for measured in found)
        rows = [(line, *_worst([m for m in found if getattr(m.case, label) == line], dtypes)) for line in lines]
        yield Table(title=title, header=(title.split()[-1], *figures), rows=tuple(rows))


def _worst(found: Sequence[Measured], dtypes: Sequence[str]) -> Iterator[str]:
    for dtype in dtypes:
        for errors in zip(*(measured.errors for measured in found if measured.dtype == dtype), strict=True):
            yield f"{max(errors):.0e}"


if __name__ == "__main__":
    from benchmarks.__main__ import main

    sys.exit(main(["--suite", "parity", *sys.argv[1:]]))
