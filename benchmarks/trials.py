"""The questions that are timed: their words, the prompts, and what stands beside each.

knockout             attention knockout (Geva et al. 2023): each token hidden from the query alone, in one layer
everywhere, output   each token hidden from all others in all layers, read in the model's answer
everywhere, layers   the same, read in every layer
all queries          the default question, read at every position
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.calls import ENGINE, NAIVE, WARMUPS, all_passes, naive_call, repeated
from benchmarks.masked_pass import masked_copies
from benchmarks.measure import Call, Timing, time_interleaved
from benchmarks.options import Options
from benchmarks.workloads import Workload
from engine import AttentionMasker

FORWARD, LAST_LOGITS = "plain forward with logits", "plain forward, logits of the final position"
COPIES, COPIES_LOGITS = "masked copies", "masked copies with logits"
KNOCKOUT, OUTPUT, LAYERS, QUERIES = "knockout", "everywhere, output", "everywhere, layers", "all queries"
NAIVE_PASSES = 6
"""Forwards of the naive way that are timed by default."""
CONDITIONS = (
    f"engine: AttentionMasker.run, its table built, steady state after {WARMUPS} runs; on a CPU it then holds a second "
    "copy of the weights, laid out for the processor; all tokens are masked",
    f"{FORWARD}: Hugging Face, SDPA, no cache, inference mode, logits of all positions, as a plain call gives them; "
    f"{LAST_LOGITS}: the same with logits_to_keep=1",
    f"{COPIES}: one Hugging Face forward of N + 1 copies of the prompt under a 4-D mask, SDPA, no cache, inference "
    "mode, base model; with logits: and those of the final positions. The mask is made beforehand, nothing is read",
    f"{NAIVE}: one forward of the base model per layer and masked token and one baseline per layer; such a forward "
    "shows every query position, and is timed reading one",
)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A question: what ``AttentionMasker.run`` is told, prompt lengths in tokens, and what the bar compares it with."""

    name: str
    words: Mapping[str, Any]
    lengths: tuple[int, ...]
    rival: str
    beside: tuple[str, ...] = ()

    @property
    def provider(self) -> str:
        return f"{ENGINE}, {self.name}"


EVERYWHERE: dict[str, Any] = {"cut": "all", "hidden_from": "others"}
TRIALS = (
    Trial(
        name=KNOCKOUT,
        words={"cut": "window:1", "hidden_from": "query", "read": "output"},
        lengths=(7, 64),
        rival=FORWARD,
        beside=(LAST_LOGITS,),
    ),
    Trial(name=QUERIES, words={"query": "all"}, lengths=(64,), rival=NAIVE),
    Trial(name=OUTPUT, words=EVERYWHERE | {"read": "output"}, lengths=(16,), rival=COPIES_LOGITS),
    Trial(name=LAYERS, words=EVERYWHERE | {"read": "layer"}, lengths=(16,), rival=COPIES),
)


@dataclass(frozen=True, kw_only=True)
class Timed:
    """A question on one prompt, timed; the naive way is extrapolated to all of its forwards."""

    trial: Trial
    workload: Workload
    timings: dict[str, Timing]
    num_passes: int
    checks: dict[str, bool] = field(default_factory=dict)

    @property
    def ratios(self) -> dict[str, float]:
        """The engine's time over each other one; for the naive way the other way round."""
        provider = self.trial.provider
        engine = self.timings[provider].median
        others = {name: t.median for name, t in self.timings.items() if name != provider}
        ratios = {f"{provider} / {name}": engine / seconds for name, seconds in others.items() if name != NAIVE}
        return ratios | ({f"{NAIVE} / {provider}": others[NAIVE] / engine} if NAIVE in others else {})


def time_trial(trial: Trial, workload: Workload, masker: AttentionMasker, options: Options) -> Timed:
    """The engine and what stands beside it, in turn."""
    total = all_passes(workload)
    num_passes = min(options.naive_passes or NAIVE_PASSES, total)
    calls: dict[str, Call] = {trial.provider: lambda: masker.run(workload.token_ids, **trial.words)}
    calls |= {name: _rival(name, workload, num_passes=num_passes) for name in (trial.rival, *trial.beside)}
    warmups = {trial.provider: repeated(calls[trial.provider])}
    if NAIVE in calls:
        warmups[NAIVE] = naive_call(workload, num_passes=2)
    timings = time_interleaved(
        calls, repeats=options.repeats, device=options.device, warmups=warmups, label=f"{workload.label}, {trial.name}"
    )
    if NAIVE in timings:
        timings[NAIVE] = timings[NAIVE].scaled(total / num_passes)
    return Timed(trial=trial, workload=workload, timings=timings, num_passes=num_passes)


def _rival(name: str, workload: Workload, *, num_passes: int) -> Call:
    makers: dict[str, Callable[[], Call]] = {
        FORWARD: lambda: forward_with_logits(workload),
        LAST_LOGITS: lambda: forward_with_logits(workload, logits_to_keep=1),
        COPIES: lambda: masked_copies(workload, logits=False),
        COPIES_LOGITS: lambda: masked_copies(workload, logits=True),
        NAIVE: lambda: naive_call(workload, num_passes=num_passes),
    }
    return makers[name]()


def forward_with_logits(workload: Workload, **kept: int) -> Call:
    """One Hugging Face forward up to the logits, of all positions if nothing else is said."""
    input_ids = torch.tensor([workload.token_ids], device=workload.model.device)

    @torch.inference_mode()
    def forward() -> object:
        return workload.model(input_ids=input_ids, use_cache=False, **kept)

    return forward
