"""Many prompts at once: prompts per second, and the share of what the device's matrix units can do."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from benchmarks.calls import ENGINE, FORWARD, SPLIT, plain_forward, split_masker
from benchmarks.cost import table_cost
from benchmarks.machine import Ceilings
from benchmarks.measure import TIMING_HEADER, Call, Timing, time_interleaved
from benchmarks.options import Options
from benchmarks.report import Row, Table
from benchmarks.workloads import Workload, random_prompt
from engine import AttentionMasker
from engine.kernels.products import exact_products
from engine.kernels.split import TERMS
from engine.model.decoder import Decoder
from engine.sweeps.passes import Pass
from engine.text.knockouts import single_tokens

PROMPTS, LENGTH = 256, 64
QUICK_PROMPTS, QUICK_LENGTH = 4, 8


@dataclass(frozen=True, kw_only=True)
class Crowd:
    """Times of many prompts at once, and the seconds that each engine's arithmetic takes at the least."""

    workload: Workload
    num_prompts: int
    timings: dict[str, Timing]
    least_seconds: dict[str, float]

    @property
    def shares(self) -> dict[str, float]:
        """Each engine's share of the matrix rate; that of split products is the bfloat16 rate over the terms."""
        return {name: least / self.timings[name].median for name, least in self.least_seconds.items()}

    @property
    def ratios(self) -> dict[str, float]:
        return {f"{name}, {self._metric}": share for name, share in self.shares.items()}

    @property
    def rows(self) -> Iterator[Row]:
        for name, t in self.timings.items():
            rates = [self.num_prompts / seconds for seconds in (t.median, t.maximum, t.minimum)]
            yield Row.of(name, f"prompts per second, {self.num_prompts} at once", "1/s", rates, **self.workload.labels)
        for name, share in self.shares.items():
            yield Row.of(name, self._metric, "1", (share,), **self.workload.labels)

    @property
    def _metric(self) -> str:
        return f"share of the matrix rate, {self.num_prompts} prompts at once"


def measure_crowd(workload: Workload, options: Options, *, own: Ceilings, narrow: Ceilings) -> Crowd:
    """Many prompts of one length in one batch; ``own`` are the limits in the model's dtype, ``narrow`` in bfloat16."""
    count, length = (QUICK_PROMPTS, QUICK_LENGTH) if options.quick else (PROMPTS, LENGTH)
    prompt = workload.of_length(length)
    prompts = [random_prompt(length, vocab_size=prompt.model.config.vocab_size, seed=seed) for seed in range(count)]
    flop = count * table_cost(prompt.model, length=length, num_tokens=length).flop
    calls: dict[str, Call] = {ENGINE: batch_call(AttentionMasker(prompt.model).decoder, prompts)}
    least = {ENGINE: flop / own.flop_per_second}
    if prompt.dtype == "float32":
        calls[SPLIT] = batch_call(split_masker(prompt.model).decoder, prompts)
        least[SPLIT] = TERMS * flop / narrow.flop_per_second
    calls[FORWARD] = plain_forward(prompt, batch=count)
    timings = time_interleaved(calls, repeats=options.repeats, device=options.device, label=f"{count} prompts")
    return Crowd(workload=prompt, num_prompts=count, timings=timings, least_seconds=least)


def batch_call(decoder: Decoder, prompts: list[list[int]]) -> Call:
    """All distances of all prompts in one pass, taken to the host; tables are not made of them."""
    knockouts = tuple(single_tokens(len(prompt), None) for prompt in prompts)
    one = Pass(decoder, tuple(map(len, prompts)), knockouts, tuple(range(len(decoder.layers))))

    def call() -> object:
        with torch.inference_mode(), exact_products(decoder.device):
            return one.distances(one.batch(prompts)).cpu()

    return call


def crowd_tables(crowds: list[Crowd]) -> list[Table]:
    """One row a crowd and call."""
    rows = tuple(
        (
            f"{crowd.num_prompts} x {crowd.workload.label}",
            name,
            *t.cells_ms,
            f"{crowd.num_prompts / t.median:.4g}",
            f"{crowd.shares[name]:.0%}" if name in crowd.shares else "",
        )
        for crowd in crowds
        for name, t in crowd.timings.items()
    )
    header = ("workload", "what", *TIMING_HEADER, "prompts/s", "share of the matrix rate")
    return [Table(title="Many prompts at once", header=header, rows=rows)]
