"""Checkpoints of supported families: config, weights and tokenizer in a folder -> ``Decoder``, and what is refused.

The weights are read from safetensors files straight into the decoder, without transformers' modelling code: importing
that takes longer than a run. Remote code is never run.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine.kernels.split import splits
from engine.model.adoption import adopt
from engine.model.angles import configured_ropes
from engine.model.assembly import WORKING_DTYPE, assemble, configured_constants
from engine.model.configs import family_config, load_tokenizer, require_plain
from engine.model.decoder import Decoder
from engine.model.devices import (
    keep_freed_memory,
    memory_errors,
    require_map,
    resolve_device,
    resolve_dtype,
    trim_memory,
)
from engine.model.families import Family
from engine.model.modelling import load_module
from engine.model.sources import find_folder, quiet
from engine.model.streamed import assemble_streamed
from engine.model.tensors import DTYPES, StoredTensor, stored_tensors
from engine.model.weights import Weights, find_weights


@dataclass(frozen=True)
class Checkpoint:
    """A folder whose config and headers are checked; ``tensors`` by transformers' names, none of them read yet."""

    source: str
    folder: Path
    family: Family
    config: Any
    tensors: Mapping[str, StoredTensor]

    @property
    def matrix_dtype(self) -> torch.dtype | None:
        """The dtype in which all matrices are stored, if it is one."""
        dtypes = {tensor.dtype for tensor in self.tensors.values() if len(tensor.shape) > 1}
        return DTYPES[dtypes.pop()] if len(dtypes) == 1 else None

    def tokenizer(self) -> Any:
        """The tokenizer, or None when the checkpoint has none."""
        return load_tokenizer(self.source, self.folder)


def load_decoder(
    name: str | Path | None,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "float32",
    folder: Path | None = None,
    stream: bool = False,
    device_map: str | None = None,
) -> tuple[Decoder, Any]:
    """The decoder in ``dtype`` on ``device``, and its tokenizer (None when the folder has none).

    ``name`` is a local folder or a hub id (None: the embedded model), ``folder`` where it lies if that is known. Memory
    holds the weights and one tensor more at most; with ``stream`` the weights stay in their files, and a pass reads
    them; with the ``device_map`` "auto" layers are laid out over all devices, by accelerate. Raises ``ModelError`` when
    there is no such model, when it is of an unsupported family, or when its files are broken, incomplete, pickled or
    quantised; ``DeviceError`` for the device, the dtype and the map.
    """
    if device_map is not None:
        require_map(device_map, device, stream=stream)
    place = resolve_device(device)
    kind = resolve_dtype(dtype, place)
    if place.type == "cpu":
        keep_freed_memory()
    with quiet():
        checkpoint = open_checkpoint(name, folder=folder)
        with memory_errors(place):
            if device_map is None:
                decoder = build_decoder(checkpoint, kind, place, stream=stream)
            else:
                decoder = build_mapped(checkpoint, kind, place)
        tokenizer = checkpoint.tokenizer()
    if stream:
        trim_memory()  # a tokenizer of many words leaves 70 MB behind, as much as a layer takes
    return replace(decoder, folder=checkpoint.folder), tokenizer


def load_model(
    name: str | Path | None, *, device: str | torch.device = "auto", dtype: str | torch.dtype = "float32"
) -> tuple[nn.Module, Any]:
    """As ``load_decoder``, but the transformers model itself, for those who need its own forward."""
    place = resolve_device(device)
    kind = resolve_dtype(dtype, place)
    with quiet():
        checkpoint = open_checkpoint(name)
        with memory_errors(place):
            return _module(checkpoint, kind).to(place).eval(), checkpoint.tokenizer()


def _module(checkpoint: Checkpoint, dtype: torch.dtype, **more: Any) -> nn.Module:
    """transformers' own module, in the forms of layers that know every soft cap and sink, and run in float64."""
    plain = {"attn_implementation": "eager", "experts_implementation": "eager"}
    model, _ = load_module(
        checkpoint.family.architecture, checkpoint.folder, checkpoint.source, dtype=dtype, **plain, **more
    )
    return model


def open_checkpoint(name: str | Path | None, *, folder: Path | None = None) -> Checkpoint:
    """The checkpoint of that name, after every check that needs no weights. Raises ``ModelError``."""
    folder = folder or find_folder(name)
    source = str(folder if name is None else name)
    family, config = family_config(source, folder)
    require_plain(source, folder)
    return Checkpoint(source, folder, family, config, find_weights(family, config, stored_tensors(folder), source))


def build_decoder(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, *, stream: bool = False) -> Decoder:
    """The decoder of a checkpoint. Raises ``ModelError`` for damaged files and for what the config asks in vain."""
    family, config = checkpoint.family, checkpoint.config
    ropes = configured_ropes(family, config, WORKING_DTYPE[dtype], device)
    split = splits(device, stored=checkpoint.matrix_dtype, asked=dtype)
    weights = Weights(checkpoint.tensors, torch.bfloat16 if split else dtype, dtype, device)
    given: Any = {"constants": configured_constants(family, config, dtype), "ropes": ropes, "name": checkpoint.source}
    if stream:
        return assemble_streamed(family, config, weights, split=split, **given)
    decoder = assemble(family, config, weights, **given)
    if split:
        decoder.split_products()
    if device.type != "cpu":  # a CPU joins them when it packs them, and only if the decoder is used again
        decoder.join()
    return decoder


def build_mapped(checkpoint: Checkpoint, dtype: torch.dtype, best: torch.device) -> Decoder:
    """The decoder of a checkpoint whose layers transformers lays out over all devices; ``best`` is one of their kind.

    Raises as ``build_decoder``, and for weights that fit onto no device.
    """
    split = splits(best, stored=checkpoint.matrix_dtype, asked=dtype)
    decoder = adopt(_module(checkpoint, torch.bfloat16 if split else dtype, device_map="auto"))
    if split:
        decoder.split_products()
    if best.type != "cpu":
        decoder.join()
    return replace(decoder, name=checkpoint.source)
