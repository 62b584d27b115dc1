"""The generic route beside the naive way, architecture by architecture: ``python -m benchmarks.parity_generic``.

Tiny random models, every layer and token. Errors of logits and streams are shares of the largest, errors of an L2
distance shares of the baseline vector, as both ways subtract vectors of that size.
"""

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.generic_cases import GENERIC_CASES, TOKENS, GenericCase, build_generic
from benchmarks.naive_generic import naive_distances
from benchmarks.oracle import NoNarrowing
from engine import AttentionMasker
from engine.errors import ImpactError
from engine.kernels.batches import make_batch
from engine.sweeps.relay import relay
from engine.text.knockouts import single_tokens

SITES = ("full", "attn", "heads")


@dataclass(frozen=True)
class GenericParity:
    """The largest errors of one architecture."""

    name: str
    kind: str
    logits: float
    streams: float
    l2: dict[str, float]
    cosine: float


def generic_parity(case: GenericCase, *, dtype: torch.dtype = torch.float64) -> GenericParity:
    """The generic route beside the model's own eager forward and the naive way, in float64 without any float32."""
    model = build_generic(case, dtype=dtype)
    with NoNarrowing() if dtype == torch.float64 else nullcontext():
        return _measured(case, model, [*TOKENS])


def _measured(case: GenericCase, model: Any, ids: list[int]) -> GenericParity:
    logits, streams = _forward_errors(model, ids)
    impact: Any = AttentionMasker(model, route="generic").measure(ids)
    naive = naive_distances(model, ids, layers=case.layers, added=case.added, factor=case.factor)
    gaps = np.abs(impact.distances[..., 0] - naive[..., 0]) / naive[..., 2]
    parts = (gaps[..., 0], gaps[..., 1], gaps[..., 2:])
    l2 = {site: float(np.nanmax(part)) for site, part in zip(SITES, parts, strict=True)}
    return GenericParity(
        case.name, case.kind, logits, streams, l2, float(np.nanmax(np.abs(impact.distances[..., 1] - naive[..., 1])))
    )


@torch.inference_mode()
def _forward_errors(model: Any, ids: list[int]) -> tuple[float, float]:
    """Logits and streams beside those of transformers' eager attention."""
    model.set_attn_implementation("eager")
    theirs = model(torch.tensor([ids]), use_cache=False, output_hidden_states=True)
    view: Any = AttentionMasker(model, route="generic").view
    batch = make_batch([ids], [single_tokens(len(ids), None)], view.device)
    *before, last = relay(view, batch, layers=range(len(view.layers)))
    pairs = [(readout.residual, theirs.hidden_states[readout.layer + 1][0]) for readout in before]
    return _gap(view.logits(last.residual), theirs.logits[0, -1:]), max(_gap(*pair) for pair in pairs)


def _gap(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def generic_parities(*, dtype: torch.dtype = torch.float64) -> Iterator[GenericParity | tuple[str, str]]:
    """All cases; in the place of one that cannot be measured, its name and why."""
    for case in GENERIC_CASES:
        try:
            yield generic_parity(case, dtype=dtype)
        except ImpactError as error:
            yield case.name, str(error)


def table_of(found: Iterable[GenericParity | tuple[str, str]]) -> str:
    """A table in Markdown."""
    lines = ["| architecture | | logits | streams | Full L2 | Attn L2 | Head L2 | cosine |", "|---|---|" + "---|" * 6]
    for each in found:
        if isinstance(each, GenericParity):
            errors = (each.logits, each.streams, *each.l2.values(), each.cosine)
            lines.append(f"| {each.name} | {each.kind} | {' | '.join(f'{error:.0e}' for error in errors)} |")
        else:
            lines.append(f"| {each[0]} | {each[1]} |" + " |" * 6)
    return "\n".join(lines)


def main() -> None:
    """Print a table for each dtype."""
    for dtype in (torch.float64, torch.float32):
        print(f"{dtype}\n\n{table_of(generic_parities(dtype=dtype))}\n")


if __name__ == "__main__":
    main()
