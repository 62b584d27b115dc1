"""From a transformers model in memory to a ``Decoder``, after proof that the model is what its class and config say.

The model is only read. A layer with a weight that the family does not account for, or with a projection that is not
a plain linear layer (quantised, adapted), would be measured wrongly in silence, so it is refused by name. Epsilons,
scales and rotary tables are those of the modules themselves.
"""

from operator import attrgetter, is_
from typing import Any

import torch
from torch import nn

from engine.errors import ModelError
from engine.model.acts import activation
from engine.model.angles import module_ropes
from engine.model.assembly import WORKING_DTYPE, Constants, assemble
from engine.model.decoder import Decoder
from engine.model.families import FAMILIES, Family, layer_shapes
from engine.model.settings import require_settings


def adopt(model: Any) -> Decoder:
    """The uniform view on a transformers causal language model. Its tensors are shared, not copied.

    Raises ``ModelError`` for an architecture, a layer or a weight layout that is not supported.
    """
    family = family_of(model)
    config: Any = model.config
    require_settings(family, config)
    stored = model.get_parameter(f"{family.embedding}.weight").dtype
    _refuse_mixed_dtypes(model, family)
    if stored not in WORKING_DTYPE:
        raise ModelError(f"weights of {stored} are not supported; load the model with dtype=torch.float32")
    layers = list(model.get_submodule(family.layers).children())[: config.num_hidden_layers]
    device = _first_device(model, family, layers)
    for index, layer in enumerate(layers):
        _refuse_unknown_weights(family, layer, config, index)
        _refuse_other_modules(family, layer, config, index)
        _refuse_other_settings(family, layer, config, index)
    _require_linear(model, family.unembedding)
    return assemble(
        family,
        config,
        {name: weight.detach() for name, weight in model.named_parameters(remove_duplicate=False)},
        constants=_constants(model, family, layers),
        ropes=module_ropes(family, _rotary(model, family), config, WORKING_DTYPE[stored], device),
        name=config.name_or_path or family.architecture,
    )


class Edition:
    """The state of a model's weights at one moment, to notice when one is replaced or edited in place.

    It holds on to the weights it saw, so that no later one can take their place in memory and pass for them.
    """

    def __init__(self, model: nn.Module) -> None:
        held = [(m._parameters, *item) for m in model.modules() for item in m._parameters.items()]
        self._slots = [(parameters, name) for parameters, name, weight in held if weight is not None]
        self._seen = [weight for _, _, weight in held if weight is not None]
        # A tensor made in inference mode has no version.
        self._counted = [weight for weight in self._seen if not weight.is_inference()]
        self._marks = self._marks_now()

    def is_current(self) -> bool:
        """Whether every weight is still the same one, where it was, unedited."""
        now = (parameters.get(name) for parameters, name in self._slots)
        return all(map(is_, now, self._seen)) and self._marks_now() == self._marks

    def _marks_now(self) -> tuple[list[int], list[int]]:
        """Address of every weight, and version of those that have one."""
        return [weight.data_ptr() for weight in self._seen], [weight._version for weight in self._counted]


def family_of(model: Any) -> Family:
    """The family of a transformers model, by its class. Raises ``ModelError`` for every other class."""
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"AttentionMasker takes a loaded transformers model, not {model!r:.80}; "
            "AttentionMasker.from_pretrained takes a folder or a hub id"
        )
    kind = type(model)
    for family in FAMILIES.values():
        if kind.__name__ == family.architecture and kind.__module__.startswith("transformers."):
            return family
    known = ", ".join(family.architecture for family in FAMILIES.values())
    raise ModelError(f"the architecture {kind.__module__}.{kind.__name__} is not supported; supported are {known}")


def _refuse_mixed_dtypes(model: nn.Module, family: Family) -> None:
    """One dtype for all matrices; norms and biases may be wider."""
    dtypes = {p.dtype for p in model.parameters() if p.ndim > 1}
    if len(dtypes) > 1:
        names = ", ".join(sorted(str(dtype) for dtype in dtypes))
        raise ModelError(f"the weights of this {family.architecture} are of several dtypes ({names}); cast it to one")


def _rotary(model: nn.Module, family: Family) -> nn.Module | None:
    return None if family.rotary is None else model.get_submodule(family.rotary)


def _refuse_unknown_weights(family: Family, layer: nn.Module, config: Any, index: int) -> None:
    known = {*layer_shapes(family, config, index), *(f"{name}.bias" for name in family.linears())}
    unknown = sorted({name for name, _ in layer.named_parameters()} - known)
    if unknown:
        raise ModelError(
            f"layer {index} holds a weight that {family.architecture} does not have: {unknown[0]}; "
            "merge adapters into the model first, and hand in no quantised one"
        )


def _refuse_other_modules(family: Family, layer: nn.Module, config: Any, index: int) -> None:
    """Plain linear layers, and the activation that the config names."""
    sparse = family.is_sparse(config, index)
    for name in (*family.qkv, family.output) if sparse else family.linears():
        _require_linear(layer, name, transposed=family.transposed)
    if family.activation is None:
        return
    probe, named = torch.linspace(-4, 4, 17), getattr(config, family.act)
    expected = activation(named).value(probe)
    path = family.activation.replace("mlp.", "mlp.experts.") if sparse else family.activation
    try:
        found: Any = attrgetter(path)(layer)
        given = getattr(found, "forward", found)(probe)  # forward goes past the user's hooks
    except AttributeError:
        given = torch.full_like(probe, torch.nan)
    if not torch.allclose(given, expected, atol=1e-3):
        raise ModelError(f"{path} of layer {index} is not the {named!r} that the config names")


def _refuse_other_settings(family: Family, layer: nn.Module, config: Any, index: int) -> None:
    """What a layer was built with, if it was changed or the layer stands elsewhere now, goes against the config."""
    sparse = family.is_sparse(config, index)
    for path, said in family.told.items():
        if path.startswith("mlp.") and not sparse:
            continue
        found, expected = attrgetter(path)(layer), said(config, index)
        if found != expected:
            raise ModelError(
                f"{path} of layer {index} is {found}, but {expected} by the config; change the config along with it"
            )


def _require_linear(owner: nn.Module, name: str, *, transposed: bool = False) -> None:
    linear: Any = owner.get_submodule(name)
    plain = type(linear) is nn.Linear if not transposed else type(linear).__name__ == "Conv1D"
    if not plain or linear.weight.dtype not in WORKING_DTYPE:
        raise ModelError(
            f"{name} is a {type(linear).__module__}.{type(linear).__name__}, not a plain linear layer; "
            "merge adapters first, and load the model without quantisation"
        )


def _constants(model: nn.Module, family: Family, layers: list[nn.Module]) -> Constants:
    """What the modules say, whatever the config does. Raises ``ModelError`` where layers differ in their heads."""
    sizes = {attrgetter(family.head_dim)(layer) for layer in layers} or {0}
    if len(sizes) > 1:
        raise ModelError(f"the layers have heads of several sizes ({', '.join(map(str, sorted(sizes)))})")
    scales = [attrgetter(family.scale)(layer) for layer in layers]
    return Constants(
        sizes.pop(), scales, lambda name: _eps(family, model.get_submodule(name)), _embedding_scale(model, family)
    )


def _embedding_scale(model: Any, family: Family) -> float:
    """In the precision of the embedding, to which the model rounds it when it multiplies."""
    if family.embedding_buffer is None:
        return family.embedding_scale(model.config)
    module = model.get_submodule(family.embedding)
    scale = getattr(module, family.embedding_buffer, None)
    if not isinstance(scale, torch.Tensor):
        raise ModelError(
            f"{family.embedding} is a {type(module).__name__} without {family.embedding_buffer}, which the embedding "
            f"of {family.architecture} has; hand in the model as transformers builds it"
        )
    return scale.to(module.weight.dtype).item()


def _eps(family: Family, module: Any) -> float:
    found = (getattr(module, name, None) for name in ("variance_epsilon", "eps"))
    eps = next((eps for eps in found if eps is not None), None)
    if eps is None:
        raise ModelError(f"a {type(module).__name__} stands where {family.architecture} has a norm with an epsilon")
    return eps


def _first_device(model: nn.Module, family: Family, layers: list[nn.Module]) -> torch.device:
    """The device of the embedding. Raises ``ModelError`` unless every layer lies on one device, and in its memory."""
    if any(parameter.device.type == "meta" for parameter in model.parameters()):
        raise ModelError(
            "some of the model's weights are in no memory (on the meta device): offloaded, or never loaded; leave the "
            "device map out and read them layer by layer, with stream=True or --stream"
        )
    for index, layer in enumerate(layers):
        devices = {parameter.device for parameter in layer.parameters()}
        if len(devices) > 1:
            places = ", ".join(sorted(map(str, devices)))
            raise ModelError(f"layer {index} is spread over {places}; a device_map must keep every layer on one device")
    return model.get_parameter(f"{family.embedding}.weight").device
