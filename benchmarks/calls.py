"""What is timed: the engine, its first call, the naive way and the plain forward, on one loaded model."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from benchmarks.measure import Call
from benchmarks.naive import run_naive
from benchmarks.workloads import Workload, is_small, layer_weights
from engine import AttentionMasker

ENGINE, FIRST, NAIVE, FORWARD = "engine", "engine, first call", "naive", "plain forward"
READING = "reading the weights"
"""Every weight matrix of the layers summed, and nothing else: no way of using them all can be faster."""
EAGER, SPLIT, SPLIT_EAGER = "engine, not replayed", "engine, split", "engine, split, not replayed"
"""What a GPU adds: the engine asked by Python each time, and on bfloat16 weights with float32 answers."""
WARMUPS = 3
"""Calls after which an engine is in its steady state: by then it has laid its weights out for the processor, or
recorded its pass on a GPU."""
NAIVE_PASSES = {16: 30, 128: 6}
"""Longest prompt -> forwards of the naive way that are timed by default; 3 for longer ones."""


@dataclass(frozen=True, kw_only=True)
class Calls:
    """The calls by name, what to run once before they are timed, and the masker that the engine's call uses."""

    calls: dict[str, Call]
    warmups: dict[str, Call]
    masker: AttentionMasker
    split: AttentionMasker | None = None
    steady: dict[str, AttentionMasker] = field(default_factory=dict)
    """The maskers whose passes are replayed where that can be, by the name of their call."""


def table_calls(workload: Workload, *, naive_passes: int) -> Calls:
    """The calls that give, or stand beside, the impact table of every token of the prompt."""
    model, token_ids = workload.model, workload.token_ids
    masker = AttentionMasker(model)
    calls: dict[str, Call] = {
        NAIVE: naive_call(workload, num_passes=naive_passes),
        ENGINE: lambda: masker.run(token_ids),
        FIRST: lambda: AttentionMasker(model).run(token_ids),
        FORWARD: plain_forward(workload),
        READING: lambda: [weight.sum() for weight in layer_weights(model)],
    }
    warmups = {NAIVE: naive_call(workload, num_passes=2), ENGINE: repeated(calls[ENGINE])}
    return Calls(calls=calls, warmups=warmups, masker=masker)


def gpu_calls(workload: Workload, *, naive_passes: int) -> Calls:
    """The same calls, and beside them the engine without replay and, for float32, with split products."""
    timed = table_calls(workload, naive_passes=naive_passes)
    steady = {ENGINE: timed.masker}
    if workload.dtype == "float32":
        steady[SPLIT] = split_masker(workload.model)
    calls, warmups = dict(timed.calls), dict(timed.warmups)
    for (name, masker), eager in zip(steady.items(), (EAGER, SPLIT_EAGER), strict=False):
        calls[name] = _run_call(masker, workload.token_ids)
        calls[eager] = _eager_call(masker, workload.token_ids)
        warmups[name] = repeated(calls[name])
    return Calls(calls=calls, warmups=warmups, masker=timed.masker, split=steady.get(SPLIT), steady=steady)


def split_masker(model: PreTrainedModel) -> AttentionMasker:
    """A masker on a bfloat16 copy of a float32 model whose weights are bfloat16 values, for float32 answers."""
    narrow = copy.deepcopy(model)
    for parameter in narrow.parameters():
        parameter.data = parameter.data.bfloat16()
    masker = AttentionMasker(narrow)
    masker.decoder.split_products()
    return masker


def _run_call(masker: AttentionMasker, token_ids: list[int]) -> Call:
    return lambda: masker.run(token_ids)


def _eager_call(masker: AttentionMasker, token_ids: list[int]) -> Call:
    """A pass whose layers are watched is never replayed."""
    return lambda: masker.measure(token_ids, watch=lambda readouts: readouts).table()


def repeated(call: Call, times: int = WARMUPS) -> Call:
    """The call so many times over."""

    def calls() -> None:
        for _ in range(times):
            call()

    return calls


def naive_call(workload: Workload, *, num_passes: int) -> Call:
    """The naive way, ended after so many forwards."""
    return lambda: run_naive(workload.model, workload.token_ids, max_passes=num_passes)


def all_passes(workload: Workload) -> int:
    """Forwards of the naive way: per layer a baseline and one for every token."""
    return workload.num_layers * (len(workload.token_ids) + 1)


def default_passes(workload: Workload) -> int:
    """How many of them are timed: all where they are cheap, else a number that the prompt's length allows."""
    length = len(workload.token_ids)
    if is_small(workload.model) and length <= 64:
        return all_passes(workload)
    return next((passes for longest, passes in NAIVE_PASSES.items() if length <= longest), 3)


def plain_forward(workload: Workload, *, batch: int = 1) -> Callable[[], object]:
    """One Hugging Face forward of the base model: SDPA, no vocabulary head, no cache, in inference mode."""
    input_ids = torch.tensor([workload.token_ids] * batch, device=workload.model.device)

    @torch.inference_mode()
    def forward() -> object:
        return workload.model.base_model(input_ids=input_ids, use_cache=False)

    return forward
