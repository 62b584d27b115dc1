"""Who tells what a model computes when the engine does not: transformers, or a record of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from engine.checks.account import Account, Probing
from engine.checks.lending import lent
from engine.checks.record import read_record
from engine.checks.witness import Stream, Taps, witness
from engine.demo import demo_folder
from engine.model.adoption import family_of
from engine.model.angles import module_ropes, rotary_class, rotary_module
from engine.model.borrowing import borrowed
from engine.model.checkpoints import Checkpoint, open_checkpoint
from engine.model.decoder import Decoder, Rope
from engine.model.families import Family
from engine.model.foreign import Foreign
from engine.model.view import View
from engine.model.weights import Weights

CHECKED_CELLS = 640_000_000
"""Weights in the layers up to which all of them are checked, in less than a second on two cores; of larger models the
first of every kind."""
NUM_LOGITS = 1024


class Oracle(Protocol):
    """``num_layers`` says of how many layers it can tell; ``precision`` is that of the less exact of both sides, and
    ``own`` that of the oracle.
    """

    @property
    def num_layers(self) -> int: ...

    @property
    def precision(self) -> torch.dtype: ...

    @property
    def own(self) -> torch.dtype: ...

    def tell(self, probing: Probing, given: Sequence[Stream]) -> tuple[list[Account], Float[Tensor, " c"]]:
        """The account of each layer, from the ``given`` stream that enters it, and the logits behind the last."""
        ...

    def ropes(self) -> Mapping[str, Rope]:
        """The rotary tables, by the names that the engine has for them; those that are not here are not compared."""
        ...


@dataclass(frozen=True)
class Held:
    """A transformers model in memory."""

    model: Any
    layers: Sequence[nn.Module]
    family: Family | None
    precision: torch.dtype

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def own(self) -> torch.dtype:
        return self.precision

    def tell(self, probing: Probing, given: Sequence[Stream]) -> tuple[list[Account], Float[Tensor, " c"]]:
        taps = None if self.family is None else Taps.of(self.family, self.model.config)
        with borrowed(self.model, None, plain_experts=True):
            return witness(self.model, self.layers, probing, given=given, taps=taps)

    def ropes(self) -> Mapping[str, Rope]:
        if self.family is None or self.family.rotary is None:
            return {}
        module, device = self.model.get_submodule(self.family.rotary), self.model.device
        return module_ropes(self.family, module, self.model.config, torch.float32, device)


@dataclass(frozen=True)
class Stored:
    """The transformers model of a checkpoint, which is never in memory as a whole."""

    checkpoint: Checkpoint
    weights: Weights
    num_layers: int
    precision: torch.dtype

    @property
    def own(self) -> torch.dtype:
        return torch.promote_types(self.precision, torch.float32)

    def tell(self, probing: Probing, given: Sequence[Stream]) -> tuple[list[Account], Float[Tensor, " c"]]:
        family = self.checkpoint.family
        sizes = {"num_layers": self.num_layers, "num_logits": min(NUM_LOGITS, self.checkpoint.config.vocab_size)}
        with (
            lent(self.checkpoint, self.weights, probing, dtype=self.own, **sizes) as loan,
            borrowed(loan.model, None, plain_experts=True),
        ):
            taps = Taps.of(family, self.checkpoint.config)
            return witness(loan.model, loan.layers, probing, given=given, taps=taps, token_ids=loan.token_ids)

    def ropes(self) -> Mapping[str, Rope]:
        family, config = self.checkpoint.family, self.checkpoint.config
        module = None if family.rotary is None else rotary_module(rotary_class(family), config).to(self.weights.device)
        return module_ropes(family, module, config, torch.float32, self.weights.device)


def oracle_of(view: View, model: Any, probing: Probing) -> Oracle | None:
    """Who tells about this view: ``model`` where it is in memory, else the files that it was read from; None where
    there is nobody, and for a model that takes no two tokens, which measures nothing.
    """
    if len(probing.token_ids) < 2:
        return None
    if isinstance(view, Foreign):
        return Held(view.model, [layer.module for layer in view.layers], None, view.stored)
    assert isinstance(view, Decoder)
    if model is not None:
        family = family_of(model)
        layers = list(model.get_submodule(family.layers).children())[: len(view.layers)]
        return Held(model, layers, family, _precision(view))
    if view.folder is None:
        return None
    recorded = read_record(probing) if _is_plain_demo(view) else None
    return recorded or stored_oracle(view)


def _is_plain_demo(decoder: Decoder) -> bool:
    return decoder.folder == demo_folder() and _precision(decoder) == torch.float32


def stored_oracle(decoder: Decoder) -> Stored:
    """Transformers, for a decoder that was read from files."""
    assert decoder.folder is not None
    checkpoint = open_checkpoint(decoder.name, folder=decoder.folder)
    vectors = decoder.dtype if decoder.unembedding.projection.split else _table_dtype(decoder)
    weights = Weights(checkpoint.tensors, _table_dtype(decoder), vectors, decoder.device)
    return Stored(checkpoint, weights, _num_checked(decoder, checkpoint), _precision(decoder))


def _precision(decoder: Decoder) -> torch.dtype:
    """That of the engine's products."""
    return decoder.dtype if decoder.unembedding.projection.split else _table_dtype(decoder)


def _table_dtype(decoder: Decoder) -> torch.dtype:
    return decoder.embedding.table.dtype


def _num_checked(decoder: Decoder, checkpoint: Checkpoint) -> int:
    """All layers, or as many from the first on as show every kind of layer."""
    config, family, count = checkpoint.config, checkpoint.family, len(decoder.layers)
    if not decoder.is_streamed and decoder.weight_bytes <= CHECKED_CELLS * _table_dtype(decoder).itemsize:
        return count
    kinds = [
        (decoder.sights[layer], family.rope_of(config, layer), family.is_sparse(config, layer))
        for layer in range(count)
    ]
    return max(kinds.index(kind) for kind in set(kinds)) + 1
