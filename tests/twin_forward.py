"""One forward of a Hugging Face model in which some queries do not read some keys, and everything that it shows.

The model computes all of it by itself but for the attention function, which transformers lets one name: here it is
written down as plainly as it can be, with one boolean for every layer, head, query and key. Nothing of the engine is
used.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from benchmarks.anatomy import anatomy_of, layers_of, multiplier_of

ATTENTION = "slow-twin"


@dataclass(frozen=True, kw_only=True)
class Cut:
    """``hidden`` is True where, in layer l and head h, query i is kept from key k.

    ``mask`` takes the key out of the softmax. ``value``: the pattern stays, and ``stand_ins`` (one vector for every
    layer and head) count in the place of the key's value.
    """

    hidden: Bool[Tensor, "l h i k"]
    intervention: str
    stand_ins: Float[Tensor, "l h d"]


@dataclass(frozen=True)
class Seen:
    """What a forward shows, at every position: see ``look``."""

    layers: list[dict[str, Tensor]]
    final: Float[Tensor, "s e"]
    logits: Float[Tensor, "s token"]


def attend(
    module: nn.Module,
    query: Float[Tensor, "1 h i d"],
    key: Float[Tensor, "1 kv k d"],
    value: Float[Tensor, "1 kv k d"],
    attention_mask: Float[Tensor, "1 1 i k"],
    *,
    scaling: float,
    shown: list[dict[str, Tensor]],
    cut: Cut | None,
    softcap: float | None = None,
    s_aux: Float[Tensor, " h"] | None = None,
    **_: Any,
) -> tuple[Float[Tensor, "1 i h d"], None]:
    """Attention from its definition. A query that has nothing to attend to adds nothing.

    Under a soft cap c the scores are c tanh(scores / c). A sink (``s_aux``) is one key more, of that score and without
    a value.
    """
    queries_per_kv = query.shape[1] // key.shape[1]
    q, k, v = query[0], key[0].repeat_interleave(queries_per_kv, dim=0), value[0].repeat_interleave(queries_per_kv, 0)
    scores = q @ k.mT * scaling
    scores = scores if softcap is None else softcap * (scores / softcap).tanh()
    visible = (attention_mask[0] == 0).expand_as(scores)
    hidden = torch.zeros_like(visible) if cut is None else cut.hidden[module.layer_idx]
    if cut is not None and cut.intervention == "mask":
        visible = visible & ~hidden
    scores = scores.masked_fill(~visible, -torch.inf)
    sinks = scores.new_full((len(scores), 1), -torch.inf) if s_aux is None else s_aux[:, None]
    pattern = torch.cat([scores, sinks[:, None].expand(-1, scores.shape[1], 1)], -1).softmax(-1)[..., :-1]
    blind = ~visible.any(-1) & (s_aux is None)
    pattern = pattern.masked_fill(blind[..., None], 0.0)
    z = pattern.masked_fill(hidden, 0.0) @ v
    if cut is not None:
        z = z + pattern.masked_fill(~hidden, 0.0).sum(-1, keepdim=True) * cut.stand_ins[module.layer_idx, :, None]
    shown[module.layer_idx].update(pattern=pattern, values=v, blind=blind, z=z)
    return z.transpose(0, 1)[None], None


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, eager_mask)


def with_plain_attention(model: Any) -> Any:
    """A copy of the model that runs ``attend``."""
    twin = copy.deepcopy(model).eval()
    twin.set_attn_implementation(ATTENTION)
    return twin


@torch.inference_mode()
def look(model: Any, token_ids: list[int], cut: Cut | None = None) -> Seen:
    """One forward of a model of ``with_plain_attention``.

    Every layer shows ``before`` and ``after`` (the residual stream), ``attn_out`` and ``mlp_out`` (what is added to
    it), and from its attention ``z`` and ``values`` (h s d), ``pattern`` (h i k) and ``blind`` (h i): True where
    nothing is left to attend to, not even a sink.
    """
    anatomy, multiplier, layers = anatomy_of(model), multiplier_of(model), layers_of(model)
    shown: list[dict[str, Tensor]] = [{} for _ in layers]
    final: list[Tensor] = []
    final_norm = model.base_model.get_submodule(anatomy.final_norm)
    hooks = [final_norm.register_forward_hook(lambda _, __, output: final.append(output[0]))]
    for layer, note in zip(layers, shown, strict=True):
        attn, mlp = (layer.get_submodule(name) for name in (anatomy.attn_added, anatomy.mlp_added))
        hooks += [
            layer.register_forward_hook(lambda _, args, out, note=note: note.update(before=args[0][0], after=out[0])),
            attn.register_forward_hook(lambda _, __, out, note=note: note.update(attn_out=first(out) * multiplier)),
            mlp.register_forward_hook(lambda _, __, out, note=note: note.update(mlp_out=first(out) * multiplier)),
        ]
    try:
        logits = model(torch.tensor([token_ids]), use_cache=False, shown=shown, cut=cut).logits[0]
    finally:
        for hook in hooks:
            hook.remove()
    return Seen(shown, final[0], logits)


def first(output: Any) -> Float[Tensor, "s e"]:
    """What a module puts out for the one prompt, beside whatever else it returns."""
    return (output[0] if isinstance(output, tuple) else output)[0]
