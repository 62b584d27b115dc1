"""One forward of an unmodified Hugging Face model in which some queries do not see some keys, in chosen layers.

Like ``naive`` it knows nothing of the engine. The batched way to ask about every token at once, a copy of the prompt
for each, is here too.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.workloads import Workload

Edge = tuple[int, int]
"""A query position and a key position."""


@dataclass(frozen=True)
class Shown:
    """What the final position shows: what every layer adds to the residual stream, the state after the final norm, and
    log-probabilities in float64.
    """

    updates: Float[Tensor, "l e"]
    state: Float[Tensor, " e"]
    log_probs: Float[Tensor, " token"]


def causal_mask(length: int, *, hidden: Iterable[Edge] = (), like: Tensor) -> Float[Tensor, "s k"]:
    """0 where a query sees a key, -inf for what comes after it and for the hidden edges."""
    mask = like.new_full((length, length), -torch.inf).triu(1)
    for query, key in hidden:
        mask[query, key] = -torch.inf
    return mask


@torch.inference_mode()
def masked_pass(
    model: PreTrainedModel, token_ids: list[int], *, layers: Collection[int] = (), hidden: Iterable[Edge] = ()
) -> Shown:
    """Run the prompt with the edges cut in these layers; the hooks go whatever happens. No sliding windows."""
    mask = causal_mask(len(token_ids), hidden=hidden, like=next(model.parameters()))[None, None]
    updates: list[Tensor] = []
    blocks = model.base_model.layers

    def hide(module: Any, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        return args, kwargs | {"attention_mask": mask}

    def note(module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        updates.append((output - args[0])[0, -1])

    states: list[Tensor] = []
    hooks = [block.register_forward_hook(note) for block in blocks]
    hooks.append(model.base_model.norm.register_forward_hook(lambda *shown: states.append(shown[2][0, -1])))
    hooks += [blocks[layer].register_forward_pre_hook(hide, with_kwargs=True) for layer in layers]
    try:
        ids = torch.tensor([token_ids], device=model.device)
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[0, -1]
    finally:
        for hook in hooks:
            hook.remove()
    return Shown(torch.stack(updates), states[0], logits.double().log_softmax(-1))


def masked_copies(workload: Workload, *, logits: bool) -> Callable[[], object]:
    """One batched forward of N + 1 copies: the baseline, and one for every token, hidden from all others everywhere.

    ``logits``: with those of the final position, else of the base model. What it shows is not even read.
    """
    model, length = workload.model, len(workload.token_ids)
    hidden: list[list[Edge]] = [[], *([(q, k) for q in range(length) if q != k] for k in range(length))]
    like = next(model.parameters())
    masks = torch.stack([causal_mask(length, hidden=edges, like=like) for edges in hidden])[:, None]
    copies = torch.tensor([workload.token_ids] * len(hidden), device=model.device)
    run: Any = model if logits else model.base_model
    kept = {"logits_to_keep": 1} if logits else {}

    @torch.inference_mode()
    def forward() -> object:
        return run(input_ids=copies, attention_mask=masks, use_cache=False, **kept)

    return forward
