"""transformers' own module of a checkpoint, its weights in memory of their own.

transformers maps safetensors files, and leaves weights that need no change where they are: in the file. Whoever cuts
that file off later would end the process (SIGBUS), and whoever writes into it would change the numbers in silence.
"""

from itertools import chain
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from engine.errors import ModelError
from engine.model.configs import LOCAL, unreadable
from engine.model.tensors import editions_of


def load_module(
    architecture: str, folder: Path, source: str, *, dtype: torch.dtype, **more: Any
) -> tuple[nn.Module, dict[str, Any]]:
    """The module that transformers calls ``architecture``, and what it says about the weights that it found.

    Raises ``ModelError`` for files that it cannot read, or that somebody else wrote while they were read.
    """
    kind = getattr(transformers, architecture)
    before = editions_of(folder)
    try:
        model, told = kind.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **LOCAL, **more
        )
        _own(model)
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            raise
        raise unreadable("the model", source, error) from error
    if editions_of(folder) != before:
        raise ModelError(f"the weights of {source!r} changed while they were read; try again when they are at rest")
    return model, told


def _own(model: nn.Module) -> None:
    for tensor in chain(model.parameters(), model.buffers()):
        if tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()
