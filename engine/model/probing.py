"""A short forward of a transformers model of no described family, and proof that its attention can be followed.

Heads, layers, windows and what the attention adds are those of the forward; a name in the configuration is trusted
for nothing but how long a prompt may be.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from engine.errors import ModelError
from engine.kernels.products import exact_products
from engine.model.additions import find_addition
from engine.model.borrowing import borrowed
from engine.model.foreign import Foreign, ForeignLayer
from engine.model.handover import Attending, Handover
from engine.model.view import Heads, Sight
from engine.model.visits import Visit, forward, visits

PROBED_TOKENS = 6
STEP = 7919
"""A prime: the probed token ids lie far apart, in any vocabulary."""
LIMITS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length", "n_ctx")
NO_LIMIT = 1 << 20
ONLY_PLAIN = "only models with one attention in every layer are supported"


def adopt_foreign(model: Any) -> Foreign:
    """The view on a transformers causal language model. Raises ``ModelError`` for one that cannot be followed."""
    refuse(model)
    device = next(model.parameters()).device
    vocab_size = model.get_input_embeddings().weight.shape[0]
    token_ids = torch.arange(1, PROBED_TOKENS + 1, device=device) * STEP % vocab_size
    with torch.inference_mode(), exact_products(device):
        return _probed(model, token_ids, vocab_size)


def refuse(model: Any) -> None:
    """Raise ``ModelError`` for what can be told without a forward."""
    from transformers import PreTrainedModel

    name = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        raise ModelError(
            f"AttentionMasker takes a loaded transformers model, not a {name}; AttentionMasker.from_pretrained takes a "
            "folder or a hub id, and of a model that is wrapped (compiled, adapted) hand in the one inside"
        )
    if type(model).__module__.startswith("transformers_modules"):
        raise ModelError(f"{name} is remote code, which is not supported; use a model that transformers itself has")
    if model.config.is_encoder_decoder:
        raise ModelError(f"{name} is an encoder-decoder, which is not supported; decoders that read one prompt are")
    if model.get_output_embeddings() is None:
        raise ModelError(f"{name} has no vocabulary head; load the model as a causal one, by AutoModelForCausalLM")
    if getattr(model, "hf_quantizer", None) or getattr(model.config, "quantization_config", None):
        raise ModelError(f"{name} is quantised, which is not supported; load the unquantised checkpoint")
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) != 1 or "meta" in {device.type for device in devices}:
        places = ", ".join(sorted(map(str, devices)))
        raise ModelError(f"the model's weights lie on {places}; load it whole onto one device, without device_map")


def _probed(model: Any, token_ids: Int[Tensor, " s"], vocab_size: int) -> Foreign:
    name, attending = type(model).__name__, Attending()
    expected = _own_logits(model, token_ids)
    with borrowed(model, attending):
        found = forward(model, token_ids).logits[:, -1]
        modules, handed = [module for module, _ in attending.seen], [handover for _, handover in attending.seen]
        made = visits(model, _members(model, modules, name), token_ids)
        _require_one_each(model, made, modules, name)
        for each in handed:
            _require_causal(each, name)
        if not _near(found, expected):
            raise ModelError(f"{name} does more in its attention than it hands over to transformers' interface")
        layers = [_layer(visit, module, name) for visit, module in zip(made, modules, strict=True)]
    entering = made[0].entering
    return Foreign(
        model=model,
        name=model.config.name_or_path or name,
        layers=tuple(layers),
        sights=tuple(Sight(each.window, each.scoring.sinks is not None) for each in handed),
        heads=_heads(handed, name),
        channels=entering.shape[-1],
        tokens=vocab_size,
        max_positions=_max_positions(model.config),
        dtype=torch.float64 if entering.dtype == torch.float64 else torch.float32,
        stored=entering.dtype,
        device=token_ids.device,
    )


def _own_logits(model: Any, token_ids: Int[Tensor, " s"]) -> Float[Tensor, "1 c"]:
    """The last logits with the model's own eager attention. Raises ``ModelError`` for a model that does not run."""
    try:
        with borrowed(model, None):
            return forward(model, token_ids).logits[:, -1]
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelError(
            f"a forward of {type(model).__name__} fails ({reason}); see that the model itself runs"
        ) from error


def _members(model: nn.Module, attentions: Sequence[nn.Module], name: str) -> list[nn.Module]:
    """The members of the lists of modules in which the attentions lie, whether they have one or not."""
    if not attentions:
        raise ModelError(f"{name} never calls transformers' attention interface, so its attention cannot be followed")
    paths = {module: path.split(".") for path, module in model.named_modules()}
    members: list[nn.Module] = []
    for attention in dict.fromkeys(attentions):
        parts = paths.get(attention, [])
        above = [model.get_submodule(".".join(parts[:length])) for length in range(len(parts))]
        lists = [module for module in above if isinstance(module, nn.ModuleList)]
        if not lists:
            raise ModelError(f"{name} has an attention outside of a list of layers, which cannot be followed")
        members += lists[-1]
    return list(dict.fromkeys(members))


def _require_one_each(model: nn.Module, made: Sequence[Visit], attentions: Sequence[nn.Module], name: str) -> None:
    """Every layer that ran asked for its attention, once."""
    for index, visit in enumerate(made):
        inside = set(visit.layer.modules())
        if index >= len(attentions) or attentions[index] not in inside:
            kind = type(visit.layer).__name__
            raise ModelError(f"{name} has a layer without attention, or with several ({index}, {kind}); {ONLY_PLAIN}")
    if len(attentions) > len(made):
        raise ModelError(f"{name} has attentions outside of its {len(made)} layers; {ONLY_PLAIN}")


def _require_causal(handed: Handover, name: str) -> None:
    """No query sees a key after it, and every query sees itself."""
    length = handed.q.shape[1]
    visible = handed.visible(torch.arange(length, device=handed.q.device))
    order = torch.ones(length, length, dtype=torch.bool, device=visible.device).tril()[:, None]
    if bool((visible & ~order).any()):
        raise ModelError(f"{name} lets a token attend to later ones; only causal language models are supported")


def _layer(visit: Visit, attention: nn.Module, name: str) -> ForeignLayer:
    added = find_addition(visit, attention)
    if added is None:
        kind = type(visit.layer).__name__
        raise ModelError(f"what the attention of {name} adds to the residual stream was not found in its {kind}")
    return ForeignLayer(visit.layer, attention, added)


def _heads(handed: Sequence[Handover], name: str) -> Heads:
    """The same number of heads in every layer; narrower ones count as filled up with zeros."""
    counts = {len(each.q) for each in handed}
    if len(counts) > 1:
        raise ModelError(f"the layers of {name} have different numbers of heads ({counts}), which is not supported")
    return Heads(counts.pop(), max(len(each.k) for each in handed), max(each.v.shape[2] for each in handed))


def _max_positions(config: Any) -> int:
    """The longest prompt; a dynamic rope stretches what the config says by its factor."""
    text = config.get_text_config(decoder=True)
    limits = [getattr(text, name, None) for name in LIMITS]
    rope = getattr(text, "rope_parameters", None) or {}
    factor = rope.get("factor", 1.0) if rope.get("rope_type") == "dynamic" else 1.0
    return next((int(limit * factor) for limit in limits if isinstance(limit, int) and limit > 0), NO_LIMIT)


def _near(found: Float[Tensor, "1 c"], expected: Float[Tensor, "1 c"]) -> bool:
    """Whether two ways give the same, as far as the dtype tells."""
    share = 1e-3 if expected.dtype in (torch.float64, torch.float32) else 0.1
    return bool((found - expected).abs().max() <= share * expected.abs().max())
