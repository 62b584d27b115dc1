"""One model at work: jobs that share a pass become impacts, or effects where they travel to the answer."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from engine.kernels.products import exact_products
from engine.model.decoder import Decoder
from engine.model.devices import host_by_default, memory_errors
from engine.model.view import View
from engine.runs.effect import Effect
from engine.runs.impact import Impact
from engine.runs.jobs import Job, Task
from engine.runs.labelled import impact_of, not_finite, num_distances
from engine.runs.preparing import Preparing
from engine.runs.trips import Trip
from engine.sweeps.passes import Pass
from engine.sweeps.probe import probe_of
from engine.sweeps.replay import Replay
from engine.text.pieces import readable_pieces
from engine.text.prompts import Prompt, read_prompt

Watch = Callable[[Iterable[Any]], Iterable[Any]]
Found = Impact | Effect


class Measuring:
    """Reads prompts for a decoder and measures them, one pass for each list of jobs."""

    def __init__(self, decoder: View, tokenizer: Any) -> None:
        self.decoder, self.tokenizer, self.replay = decoder, tokenizer, Replay()

    def read(self, prompt: str | Sequence[int]) -> Prompt:
        """Tokenize and check a prompt. Raises ``PromptError``."""
        vocab_size, max_positions = self.decoder.vocab_size, self.decoder.max_positions
        return read_prompt(prompt, self.tokenizer, vocab_size=vocab_size, max_positions=max_positions)

    def preparing(self, task: Task) -> Preparing:
        """A task, ready for prompts; see ``Preparing`` for what it raises."""
        return Preparing(self.decoder, self.tokenizer, task)

    def measure(self, jobs: list[Job], task: Task, *, next_tokens: int = 0, watch: Watch = iter) -> list[Found]:
        """What prompts that share a pass give."""
        device = self.decoder.device
        with torch.inference_mode(), host_by_default(), exact_products(device), memory_errors(device):
            if task.question.is_local:
                return [*self._locally(jobs, task, next_tokens, watch)]
            assert isinstance(self.decoder, Decoder)  # what else there is does not travel, and was refused
            trip = Trip(self.decoder, self.tokenizer, jobs, task, watch)
            return [*(trip.impacts() if task.question.read == "layer" else trip.effects(self._top(next_tokens)))]

    def _locally(self, jobs: list[Job], task: Task, next_tokens: int, watch: Watch) -> Iterable[Impact]:
        """Every layer is cut on its own, and read at once."""
        one = self._pass(jobs, task)
        prompts = [job.prompt.token_ids for job in jobs]
        replayable = watch is iter and not next_tokens and not any(job.undefined.any() for job in jobs)
        cells, residual = self.replay.distances(one, prompts) if replayable else None, None
        if cells is None:
            measured, residual = one.measured(one.batch(prompts), to_end=next_tokens > 0, watch=watch)
            cells = measured.cpu().numpy()
        if np.isinf(cells).any() or np.isnan(cells[..., 0]).any():
            raise not_finite(one.first_broken_layer(prompts))
        likeliest = [()] * len(jobs) if residual is None else self._after(one, residual, next_tokens)
        undefined = np.concatenate([job.undefined for job in jobs], axis=1)
        cells[..., : num_distances(task)][undefined] = np.nan
        parts = np.split(cells, np.cumsum([job.num_cases for job in jobs])[:-1], axis=1)
        for job, part, tokens in zip(jobs, parts, likeliest, strict=True):
            yield impact_of(job, task, part, heads=self.decoder.heads.num_heads, next_tokens=tokens)

    def _pass(self, jobs: list[Job], task: Task) -> Pass:
        readings = [job.plan.readings for job in jobs]
        of = [prompt for prompt, each in enumerate(readings) for _ in each]
        return Pass(
            self.decoder,
            tuple(len(job.prompt) for job in jobs),
            tuple(knockouts for each in readings for knockouts in each),
            task.layers,
            tuple(of) if len(of) > len(jobs) else None,
            probe_of(task.question),
        )

    def _after(self, one: Pass, residual: Float[Tensor, "b e"], count: int) -> list[tuple[tuple[str, float], ...]]:
        """The likeliest tokens after each prompt, from the streams that leave the last layer at the queries read."""
        if not count:
            return [()] * len(one.lengths)
        first = [(one.of or range(len(one.lengths))).index(prompt) for prompt in range(len(one.lengths))]
        last = [place - 1 for place in first[1:]] + [len(one.knockouts) - 1]
        return self._top(count)(residual[last])

    def _top(self, count: int) -> Callable[[Float[Tensor, "b e"]], list[tuple[tuple[str, float], ...]]]:
        """What turns streams into the most probable next tokens."""
        if not count:
            return lambda residual: [()] * len(residual)
        return lambda residual: [self._top_of(row, count) for row in self.decoder.logits(residual).float()]

    def _top_of(self, logits: Float[Tensor, " c"], count: int) -> tuple[tuple[str, float], ...]:
        if not count or not logits.isfinite().all():
            return ()
        top = torch.softmax(logits, dim=-1).topk(min(count, len(logits)))
        pieces = readable_pieces(top.indices.tolist(), self.tokenizer)
        return tuple(zip(pieces, top.values.tolist(), strict=True))
