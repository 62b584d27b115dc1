"""One decoder at work: prompts become jobs, and jobs that share a pass become impacts."""

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from engine.errors import ImpactError, NumbersError, PromptError
from engine.kernels.products import exact_products
from engine.model.decoder import Decoder
from engine.model.devices import memory_errors
from engine.runs.impact import Impact
from engine.runs.schedule import Job
from engine.sweeps.distances import measure_readouts
from engine.sweeps.passes import Pass
from engine.sweeps.replay import Replay
from engine.sweeps.sweep import Readout
from engine.tables.table import variant_names
from engine.text.knockouts import Knockouts, single_tokens
from engine.text.pieces import readable_pieces
from engine.text.prompts import Prompt, read_prompt, read_prompts


class Measuring:
    """Reads prompts for a decoder and measures them, one pass for each list of jobs."""

    def __init__(self, decoder: Decoder, tokenizer: Any) -> None:
        self.decoder, self.tokenizer, self.replay = decoder, tokenizer, Replay()

    def read(self, prompt: str | Sequence[int]) -> Prompt:
        """Tokenize and check a prompt. Raises ``PromptError``."""
        return read_prompt(prompt, self.tokenizer, **self._limits)

    def jobs(
        self, prompts: Sequence[Any], layers: Sequence[int], tokens: Sequence[int] | None
    ) -> list[Job | ImpactError]:
        """The prompts, read, with their knockouts; in the place of one that cannot be measured, why not."""
        plans = cache(lambda length: self._plan(length, layers, tokens))
        found = read_prompts(prompts, self.tokenizer, **self._limits)
        return [each if isinstance(each, ImpactError) else _job(each, plans(len(each))) for each in found]

    def measure(
        self,
        jobs: list[Job],
        layers: tuple[int, ...],
        *,
        next_tokens: int = 0,
        watch: Callable[[Iterable[Readout]], Iterable[Readout]] = iter,
    ) -> list[Impact]:
        """The impacts of prompts that share a pass."""
        one = Pass(self.decoder, tuple(len(job.prompt) for job in jobs), tuple(job.knockouts for job in jobs), layers)
        prompts = [job.prompt.token_ids for job in jobs]
        replayable = watch is iter and not next_tokens and not any(job.undefined.any() for job in jobs)
        with torch.inference_mode(), exact_products(self.decoder.device), memory_errors(self.decoder.device):
            cells = self.replay.distances(one, prompts) if replayable else None
            if cells is None:
                batch = one.batch(prompts)
                readouts = watch(one.readouts(batch, to_end=next_tokens > 0))
                measured, residual = measure_readouts(readouts, batch.query_origins.rows, limits=one.limits)
                cells = measured.cpu().numpy()
            if np.isinf(cells).any() or np.isnan(cells[..., 0]).any():
                raise NumbersError(_what_broke(one.first_broken_layer(prompts)))
            likeliest = self._likeliest(residual, next_tokens) if next_tokens else [()] * len(jobs)
        cells[np.concatenate([job.undefined for job in jobs], axis=1)] = np.nan
        variants = tuple(variant_names(self.decoder.heads.num_heads))
        parts = np.split(cells, np.cumsum([len(job.knockouts.masked) for job in jobs])[:-1], axis=1)
        return [
            Impact(job.prompt, layers, tuple(p for (p,) in job.knockouts.masked), variants, part, tokens)
            for job, part, tokens in zip(jobs, parts, likeliest, strict=True)
        ]

    @property
    def _limits(self) -> dict[str, int]:
        return {"vocab_size": self.decoder.vocab_size, "max_positions": self.decoder.max_positions}

    def _plan(self, length: int, layers: Sequence[int], tokens: Sequence[int] | None) -> "Plan":
        """What is the same for all prompts of one length, or why they cannot be measured."""
        try:
            knockouts = single_tokens(length, tokens)
            return knockouts, self._undefined(knockouts, layers)
        except ImpactError as error:
            return error

    def _undefined(self, knockouts: Knockouts, layers: Sequence[int]) -> Bool[np.ndarray, "l v"]:
        """The cells whose query is left with nothing to attend to. Raises ``PromptError`` if that is all of them."""
        windows = [self.decoder.layers[layer].attention.window for layer in layers]
        by_window = {window: knockouts.undefined(window) for window in set(windows)}
        undefined = np.stack([by_window[window] for window in windows])
        if undefined.all():
            raise PromptError(
                "nothing can be measured: every chosen token is the only one that its query attends to; "
                "choose other tokens, or a longer prompt"
            )
        return undefined

    def _likeliest(self, residual: Float[Tensor, "b e"], count: int) -> list[tuple[tuple[str, float], ...]]:
        """The most probable next tokens after each prompt, from the stream that leaves the last layer at the query."""
        return [self._likeliest_of(row, count) for row in self.decoder.logits(residual).float()]

    def _likeliest_of(self, logits: Float[Tensor, " c"], count: int) -> tuple[tuple[str, float], ...]:
        if not logits.isfinite().all():
            return ()
        top = torch.softmax(logits, dim=-1).topk(min(count, len(logits)))
        pieces = readable_pieces(top.indices.tolist(), self.tokenizer)
        return tuple(zip(pieces, top.values.tolist(), strict=True))


Plan = tuple[Knockouts, Bool[np.ndarray, "l v"]] | ImpactError


def _job(prompt: Prompt, plan: Plan) -> Job | ImpactError:
    return plan if isinstance(plan, ImpactError) else Job(prompt, *plan)


def _what_broke(layer: int | None) -> str:
    if layer is None:
        return "a distance is not finite although the activations are; choose --dtype float64"
    return (
        f"the activations that leave layer {layer} are not finite (NaN or infinity); check the weights of the "
        "checkpoint, and choose --dtype float32 if they were narrower"
    )
