"""The impact table by TransformerLens: one pass over copies, cut and read with hooks.

https://github.com/TransformerLensOrg/TransformerLens, version 4 (TransformerBridge).
"""

import copy
from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoTokenizer, PreTrainedModel

from benchmarks.copies import PeerCall, PeerRun, Shown, copies_of, peer_run
from benchmarks.workloads import DEMO_FOLDER

Hook = tuple[str, Any]


def table_call(model: PreTrainedModel, token_ids: list[int]) -> PeerCall:
    """A call that computes the table of every token of the prompt; the bridge is built beforehand."""
    bridge, copies = _bridge(model), copies_of(token_ids, model)
    num_layers, num_heads = model.config.num_hidden_layers, model.config.num_attention_heads

    @torch.inference_mode()
    def run() -> PeerRun:
        seen: list[dict[str, Tensor]] = [{} for _ in range(num_layers)]
        hooks = [hook for layer in range(num_layers) for hook in _hooks(layer, seen[layer], len(token_ids))]
        bridge.run_with_hooks(copies, return_type=None, fwd_hooks=[*hooks, ("ln_final.hook_in", _one_row)])
        return peer_run([Shown(**layer) for layer in seen], num_heads=num_heads)

    return run


def _bridge(model: PreTrainedModel) -> Any:
    """TransformerLens around the model. It rebuilds the modules, so it gets its own, with the same weights.

    A tokenizer is required but not used: prompts are token ids.
    """
    shell = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    tokenizer = AutoTokenizer.from_pretrained(DEMO_FOLDER)
    return TransformerBridge.boot_transformers(model.config.model_type, hf_model=shell, tokenizer=tokenizer)


def _hooks(layer: int, seen: dict[str, Tensor], num_tokens: int) -> list[Hook]:
    """Cut one layer in every copy but the first, note what it shows, and let the first copy's output go on for all."""
    tokens = torch.arange(num_tokens)

    def hide(scores: Tensor, hook: Any) -> Tensor:
        scores[tokens + 1, :, :, tokens] = float("-inf")
        return scores

    def note(name: str) -> Any:
        return lambda value, hook: seen.update({name: value[:, -1].flatten(1)})

    return [
        (f"blocks.{layer}.attn.hook_attn_scores", hide),
        (f"blocks.{layer}.attn.hook_z", note("z")),
        (f"blocks.{layer}.hook_attn_out", note("attn_out")),
        (f"blocks.{layer}.hook_mlp_out", note("mlp_out")),
        (f"blocks.{layer}.hook_resid_post", lambda value, hook: value[:1].expand_as(value)),
    ]


def _one_row(residual: Tensor, hook: Any) -> Tensor:
    """Logits are not needed, and can't be left out: one row of them is made."""
    return residual[:1, -1:]
