"""The float64 oracle: a copy of a Hugging Face model that computes in float64 throughout."""

import copy
from typing import Any

from torch import nn
from transformers import PreTrainedModel


def float64_model(model: PreTrainedModel) -> PreTrainedModel:
    """A float64 copy of the model on the CPU, in evaluation mode; the model itself stays as it is.

    ``.double()`` alone does not do that. Hugging Face's RMSNorm modules compute in float32 whatever they are given, and
    so does the softmax of eager attention: either leaves errors of 1e-7. The norms are replaced by ``torch.nn.RMSNorm``
    with the same weight and eps, and attention runs under SDPA. The rotary tables stay what they are by definition of
    these families: computed in float32, then widened.
    """
    wide = copy.deepcopy(model).cpu().double().eval()
    wide.set_attn_implementation("sdpa")
    for parent in list(wide.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__.endswith("Norm") and not isinstance(child, nn.RMSNorm):
                setattr(parent, name, _float64_norm(child))
    return wide


def _float64_norm(norm: Any) -> nn.RMSNorm:
    """The same RMSNorm, w * x / sqrt(mean(x²) + eps), without the detour through float32."""
    if not hasattr(norm, "variance_epsilon"):
        raise ValueError(
            f"{type(norm).__name__} is not an RMSNorm with variance_epsilon, so it has no float64 twin here"
        )
    replacement = nn.RMSNorm(norm.weight.shape, eps=norm.variance_epsilon, device=norm.weight.device)
    replacement.weight = norm.weight
    return replacement
