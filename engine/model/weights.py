"""The weights that a config calls for, found among the tensors of a checkpoint: all of them, and no others."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.errors import ModelError
from engine.model.families import Family, Shapes, expert_parts, shapes
from engine.model.tensors import DTYPES, StoredTensor

BUFFERS = re.compile(r"(rotary_emb\.inv_freq|\.(attn|attention)\.(masked_)?bias)$")
"""Old checkpoints store frequencies and causal masks, which follow from the config."""
COMPARED_CELLS = 1 << 22


@dataclass(frozen=True)
class Weights(Mapping[str, Tensor]):
    """The tensors of a checkpoint, each read, cast and moved when it is asked for, and not kept.

    ``dtype`` is that of matrices, ``vector_dtype`` that of norms and biases.
    """

    tensors: Mapping[str, StoredTensor]
    dtype: torch.dtype
    vector_dtype: torch.dtype
    device: torch.device

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name].read().to(device=self.device, dtype=self.dtype_of(name))

    def dtype_of(self, name: str) -> torch.dtype:
        """The dtype in which a tensor is wanted."""
        is_matrix = len(self.tensors[name].shape) > 1 and not name.endswith("bias")
        return self.dtype if is_matrix else self.vector_dtype

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def find_weights(
    family: Family, config: Any, stored: Mapping[str, StoredTensor], source: str
) -> dict[str, StoredTensor]:
    """The stored tensors by the names of the causal model; without unembedding where the embedding serves as one.

    Raises ``ModelError`` when a weight is missing, misshapen or quantised, and when there are others; ``source`` names
    the checkpoint.
    """
    named = {_renamed(family, name): tensor for name, tensor in stored.items() if not BUFFERS.search(name)}
    wanted = _wanted(family, config, named)
    tensors = _tied(family, config, _named(named, wanted, family.prefix))
    _refuse_narrow(source, tensors)
    _refuse_missing(source, tensors, wanted, {f"{family.unembedding}.weight"} if config.tie_word_embeddings else set())
    _refuse_foreign(source, tensors, wanted)
    return {name: tensor for name, tensor in tensors.items() if name in wanted}


def _renamed(family: Family, name: str) -> str:
    """The name that transformers has today for a weight that checkpoints call otherwise."""
    for part, now in family.renamed.items():
        name = name.replace(part, now)
    return name


def _wanted(family: Family, config: Any, named: Mapping[str, StoredTensor]) -> Shapes:
    """The weights that the config calls for; experts one by one, unless the checkpoint holds them stacked."""
    wanted, experts = shapes(family, config), family.experts
    if experts is None or experts.parts is None or any(name.endswith(experts.gate_up) for name in named):
        return wanted
    for at in [
        f"{family.layers}.{layer}." for layer in range(config.num_hidden_layers) if family.is_sparse(config, layer)
    ]:
        del wanted[at + experts.gate_up], wanted[at + experts.down]
        wanted |= expert_parts(experts, config, at)
        if len(wanted) > len(named) + 1:  # some are missing, and that is said without making up millions of names
            break
    return wanted


def _named(stored: Mapping[str, StoredTensor], wanted: Shapes, prefix: str) -> dict[str, StoredTensor]:
    """The tensors by the names of the causal model, which a base model's checkpoint leaves a prefix out of."""
    full = {name: prefix + name for name in stored if prefix + name in wanted and prefix + name not in stored}
    return {full.get(name, name): tensor for name, tensor in stored.items()}


def _tied(family: Family, config: Any, tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Embedding and unembedding as transformers ties them: one for both where one is stored or both are equal."""
    inward, outward = f"{family.embedding}.weight", f"{family.unembedding}.weight"
    if not config.tie_word_embeddings or outward not in tensors:
        return tensors
    rest = {name: tensor for name, tensor in tensors.items() if name != outward}
    if inward not in tensors:
        return rest | {inward: tensors[outward]}
    pair = tensors[inward], tensors[outward]
    readable = pair[0].dtype == pair[1].dtype in DTYPES and pair[0].shape == pair[1].shape
    return rest if readable and _are_equal(*pair) else tensors


def _are_equal(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two tensors of one shape hold the same, of which only a few rows at a time are read."""
    height, step = one.shape[0], max(1, COMPARED_CELLS // max(1, one.shape[1]))
    spans = ((start, min(start + step, height)) for start in range(0, height, step))
    return all(torch.equal(one.part(*span).read(), other.part(*span).read()) for span in spans)


def _refuse_missing(source: str, tensors: Mapping[str, StoredTensor], wanted: Shapes, optional: set[str]) -> None:
    """Nothing is filled with random numbers. ``optional`` may be missing, but not misshapen."""
    missing = [name for name in wanted if name not in tensors and name not in optional]
    misshapen = [name for name, shape in wanted.items() if name in tensors and tensors[name].shape != shape]
    if lacking := sorted(missing + misshapen):
        raise ModelError(
            f"the checkpoint {source!r} is incomplete: {len(lacking)} weights are missing or misshapen, "
            f"first {lacking[0]}; download it again"
        )


def _refuse_foreign(source: str, tensors: Mapping[str, StoredTensor], wanted: Shapes) -> None:
    """Nothing is left over in silence."""
    foreign = sorted(name for name in tensors if name not in wanted)
    if foreign:
        raise ModelError(
            f"the checkpoint {source!r} holds {len(foreign)} weights that its config.json does not account for, "
            f"first {foreign[0]}; it is adapted, quantised or of another architecture"
        )


def _refuse_narrow(source: str, tensors: Mapping[str, StoredTensor]) -> None:
    """Integers and 8-bit floats are the storage of quantised weights, whatever the config says."""
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise ModelError(
                f"weight {name} of {source!r} is stored as {tensor.dtype}, a quantised format, which is not supported; "
                "give the unquantised checkpoint"
            )
