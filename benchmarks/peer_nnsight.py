"""The impact table by nnsight: one trace over copies, cut by a mask of their own and read at the modules.

https://github.com/ndif-team/nnsight, version 0.8.
"""

import nnsight
import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.copies import PeerCall, PeerRun, Shown, copies_of, peer_run


def table_call(model: PreTrainedModel, token_ids: list[int]) -> PeerCall:
    """A call that computes the table of every token of the prompt; the wrapper and the mask are made beforehand."""
    wrapped, copies = nnsight.NNsight(model.base_model), copies_of(token_ids, model)
    mask = _mask(len(token_ids), model)

    @torch.inference_mode()
    def run() -> PeerRun:
        with wrapped.trace(input_ids=copies, attention_mask=mask, use_cache=False):
            seen = nnsight.save([])
            for layer in wrapped.layers:
                z = layer.self_attn.o_proj.input[:, -1]
                attn_out = layer.self_attn.output[0][:, -1]
                mlp_out = layer.mlp.output[:, -1]
                seen.append((attn_out, mlp_out, z))
                layer.output = layer.output[:1].expand_as(layer.output)
        return peer_run([Shown(*layer) for layer in seen], num_heads=model.config.num_attention_heads)

    return run


def _mask(num_tokens: int, model: PreTrainedModel) -> Tensor:
    """What is added to the scores: causality, and in copy i + 1 the column of token i; -inf where a key is hidden."""
    visible = torch.ones(1 + num_tokens, 1, num_tokens, num_tokens, dtype=torch.bool).tril()
    tokens = torch.arange(num_tokens)
    visible[tokens + 1, :, :, tokens] = False
    return torch.zeros(visible.shape, dtype=model.dtype).masked_fill(~visible, float("-inf")).to(model.device)
