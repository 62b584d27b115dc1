"""A transformers model that never holds its weights: each layer reads its own when the forward comes to it.

It is built without memory, and knows as many tokens as the probe has. What it reads, it reads from the checkpoint by
transformers' own names; nothing of what the engine made of the same files is used.
"""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engine.checks.account import Probing, logit_ids
from engine.model.angles import rotary_module
from engine.model.checkpoints import Checkpoint
from engine.model.configs import unreadable
from engine.model.families import ExpertNames
from engine.model.weights import Weights


@dataclass(frozen=True)
class Lent:
    """The model, the layers that it was left, and the token ids of the probe in its vocabulary of a few."""

    model: Any
    layers: Sequence[nn.Module]
    token_ids: tuple[int, ...]


@contextmanager
def lent(
    checkpoint: Checkpoint, weights: Weights, probing: Probing, *, dtype: torch.dtype, num_layers: int, num_logits: int
) -> Iterator[Lent]:
    """The model of a checkpoint in ``dtype`` with its first layers, which gives ``num_logits`` logits.

    ``weights`` say in which dtypes the engine took them, and where the model is to compute.
    """
    family, lending = checkpoint.family, _Lending(checkpoint, weights, dtype)
    model = lending.empty_model()
    layers = model.get_submodule(family.layers)
    kept = nn.ModuleList(list(layers)[:num_layers])
    model.set_submodule(family.layers, kept)
    lending.fill_ends(model, probing, num_logits)
    with lending.reading(kept, family.layers):
        yield Lent(model, list(kept), tuple(range(len(probing.token_ids))))


@dataclass(frozen=True)
class _Lending:
    checkpoint: Checkpoint
    weights: Weights
    dtype: torch.dtype

    def empty_model(self) -> Any:
        """The model without memory, but for what follows from the config."""
        import transformers

        family, config = self.checkpoint.family, copy.deepcopy(self.checkpoint.config)
        try:
            with torch.device("meta"):
                model = getattr(transformers, family.architecture)(config).to(self.dtype).eval()
        except Exception as error:
            raise unreadable("the model", self.checkpoint.source, error) from error
        if family.rotary is not None:
            rotary: Any = model.get_submodule(family.rotary)
            model.set_submodule(family.rotary, rotary_module(type(rotary), model.config).to(self.weights.device))
        if family.embedding_buffer is not None:
            embedding, factor = model.get_submodule(family.embedding), family.embedding_scale(config)
            rounded = torch.tensor(factor, dtype=self.weights.vector_dtype, device=self.weights.device)
            setattr(embedding, family.embedding_buffer, rounded.to(self.dtype))
        return model

    def fill_ends(self, model: nn.Module, probing: Probing, num_logits: int) -> None:
        """What is not in a layer: of the vocabulary only the rows that are needed."""
        family, tensors = self.checkpoint.family, self.weights.tensors
        inward, outward = f"{family.embedding}.weight", f"{family.unembedding}.weight"
        stored = outward if outward in tensors else inward
        ids = logit_ids(tensors[stored].shape[0], num_logits).tolist()
        self._set(model, inward, tensors[inward].rows(probing.token_ids))
        model.get_submodule(family.embedding).padding_idx = None  # type: ignore[assignment]  # it names no row of a few
        self._set(model, outward, tensors[stored].rows(ids), stored=stored)
        for name, parameter in list(model.named_parameters()):
            if parameter.is_meta and not name.startswith(f"{family.layers}."):
                self._set(model, name, self.weights[name])

    @contextmanager
    def reading(self, layers: nn.ModuleList, at: str) -> Iterator[None]:
        """While it lasts, each layer has its weights from when it runs until the next one does.

        All have them in the same memory: a system may take longer to give new memory than to read a file into it.
        """
        places, room = {layer: index for index, layer in enumerate(layers)}, Room()
        filled: list[nn.Module] = []

        def fill(layer: nn.Module, _: Any) -> None:
            if any(parameter.is_meta for parameter in layer.parameters()):
                while filled:
                    filled.pop().to("meta")
                filled.append(layer)
                layer.load_state_dict(self._state(layer, f"{at}.{places[layer]}.", room), assign=True)

        hooks = [layer.register_forward_pre_hook(fill) for layer in layers]
        try:
            yield
        finally:
            layers.to("meta")
            for hook in hooks:
                hook.remove()

    def _state(self, layer: nn.Module, at: str, room: "Room") -> Mapping[str, Tensor]:
        experts, config = self.checkpoint.family.experts, self.checkpoint.config
        return {
            name: self._read(name, _stored_as(experts, name, at, self.weights, config), parameter.shape, room)
            for name, parameter in layer.named_parameters()
        }

    def _read(self, name: str, stored: Sequence[str], shape: torch.Size, room: "Room") -> Tensor:
        """A weight of a layer, from the tensors ``stored`` one behind the other, rounded as the engine rounds it."""
        rounded = room(name, shape, self.weights.dtype_of(stored[0]))
        tensors = [self.weights.tensors[each] for each in stored]
        cells = rounded.flatten().split([math.prod(tensor.shape) for tensor in tensors])
        for tensor, place in zip(tensors, cells, strict=True):
            tensor.fill(place)
        there = rounded.to(self.weights.device)
        return there if there.dtype == self.dtype else room(name, shape, self.dtype, there.device).copy_(there)

    def _set(self, model: nn.Module, name: str, tensor: Tensor, *, stored: str | None = None) -> None:
        """In the precision in which the engine took it (or what is ``stored`` for it), and then in the model's own."""
        owner, _, attribute = name.rpartition(".")
        rounded = tensor.to(self.weights.device, self.weights.dtype_of(stored or name))
        setattr(model.get_submodule(owner), attribute, nn.Parameter(rounded.to(self.dtype), requires_grad=False))


class Room:
    """Memory by the name of a weight: whoever asks again for as much of it gets the same."""

    def __init__(self) -> None:
        self._given: dict[tuple[Any, ...], Tensor] = {}

    def __call__(self, name: str, shape: torch.Size, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        """Contiguous cells of any content."""
        key = name, shape, dtype, str(device)
        if key not in self._given:
            self._given[key] = torch.empty(shape, dtype=dtype, device=device)
        return self._given[key]


def _stored_as(experts: ExpertNames | None, name: str, at: str, weights: Weights, config: Any) -> list[str]:
    """The tensors that hold a weight of a layer, in order: several where experts are stored one by one."""
    if at + name in weights or experts is None or experts.parts is None:
        return [at + name]
    gate, up, down = experts.parts
    parts = (gate, up) if name == experts.gate_up else (down,)
    return [f"{at}{part.format(expert)}.weight" for expert in range(config.num_local_experts) for part in parts]
