"""Transformers' own batched forward of a set of prompts: sorted by length, padded on the right, in its best batches."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from benchmarks.measure import Call, time_once
from benchmarks.workloads import random_prompt

BATCH_SIZES = (8, 16, 32)
SAMPLED = 4
"""Of the longest batches, laid end to end from short to long, each fourth is timed to choose the size of batches."""


def random_prompts(size: int, lengths: tuple[int, int], *, vocab_size: int) -> list[list[int]]:
    """Prompts of random ids whose lengths, both ends included, are drawn evenly; the same ones every time."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(lengths[0], lengths[1] + 1, (size,), generator=generator).tolist()
    return [random_prompt(length, vocab_size=vocab_size, seed=seed) for seed, length in enumerate(drawn)]


Batch = tuple[torch.Tensor, torch.Tensor]


def padded_batches(prompts: Sequence[Sequence[int]], size: int) -> list[Batch]:
    """Token ids and attention masks of the prompts, sorted by length, ``size`` at a time, padded on the right."""
    ordered = sorted(prompts, key=len)
    return [_padded(ordered[start : start + size]) for start in range(0, len(ordered), size)]


def _padded(prompts: Sequence[Sequence[int]]) -> Batch:
    rows = [torch.tensor(prompt) for prompt in prompts]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return ids, mask


def batched_forward(model: PreTrainedModel, batches: Sequence[Batch]) -> Call:
    """One forward of the base model for each batch: SDPA, attention mask, no cache, no vocabulary head."""

    @torch.inference_mode()
    def forward() -> None:
        for ids, mask in batches:
            model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)

    return forward


def time_batches(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> dict[int, float]:
    """Seconds of the same sample of the sorted prompts in batches of every size, after a warm-up."""
    longest = max(BATCH_SIZES)
    ordered = sorted(prompts, key=len)
    starts = range(min(longest * (SAMPLED // 2), len(ordered) // 2), len(ordered), longest * SAMPLED)
    sample = [prompt for start in starts for prompt in ordered[start : start + longest]]
    batched_forward(model, padded_batches(sample[-longest:], longest))()
    return {size: time_once(batched_forward(model, padded_batches(sample, size))) for size in BATCH_SIZES}
