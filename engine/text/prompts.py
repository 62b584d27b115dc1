"""Text to token ids. This file and ``pieces`` are the only users of a tokenizer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from engine.errors import PromptError
from engine.text.pieces import readable_pieces


@dataclass(frozen=True)
class Prompt:
    """Token ids, and for each the text that a person reads in its place (the id itself without a tokenizer)."""

    token_ids: tuple[int, ...]
    pieces: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.token_ids)


def read_prompt(source: str | Sequence[int], tokenizer: Any, *, vocab_size: int, max_positions: int) -> Prompt:
    """Tokenize text (or take token ids as they are) and check that the model can read it.

    Raises ``PromptError`` for an empty or one-token prompt, one longer than ``max_positions``, an id outside the
    vocabulary, text that is not valid Unicode, and text without a tokenizer.
    """
    token_ids = _tokenize(source, tokenizer) if isinstance(source, str) else _as_ids(source)
    _check(token_ids, vocab_size=vocab_size, max_positions=max_positions)
    return Prompt(token_ids, readable_pieces(token_ids, tokenizer))


def _tokenize(text: str, tokenizer: Any) -> tuple[int, ...]:
    if tokenizer is None:
        raise PromptError(
            "this model has no tokenizer, so it reads no text; give a folder with tokenizer files, or ids from Python"
        )
    if not text:
        raise PromptError("the prompt is empty; give at least two tokens of text")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(f"the prompt is not valid text: {error.reason} at character {error.start}") from None
    return tuple(tokenizer(text, verbose=False)["input_ids"])


def _as_ids(source: Any) -> tuple[int, ...]:
    """Token ids from a flat sequence, an array, a tensor, one row of a batch, or what a tokenizer returns."""
    if isinstance(source, Mapping) and "input_ids" in source:
        source = source["input_ids"]
    try:
        array = np.asarray(source.tolist() if isinstance(source, torch.Tensor) else source)
        array = array[0] if array.ndim == 2 and len(array) == 1 else array
    except ValueError:
        array = np.empty((0, 0))
    if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
        raise PromptError("a prompt is text or a flat list of whole-number token ids, such as [12, 7, 99]")
    if array.size == 0:
        raise PromptError("the prompt is empty; give at least two token ids")
    return tuple(array.tolist())


def _check(token_ids: tuple[int, ...], *, vocab_size: int, max_positions: int) -> None:
    if len(token_ids) < 2:
        raise PromptError(
            f"the prompt has {len(token_ids)} of the two tokens it needs: with a lone token masked "
            "there is nothing left to attend to; give a longer prompt"
        )
    if len(token_ids) > max_positions:
        raise PromptError(f"the prompt has {len(token_ids)} tokens, the model reads {max_positions}; shorten it")
    for token_id in (min(token_ids), max(token_ids)):
        if not 0 <= token_id < vocab_size:
            raise PromptError(f"there is no token {token_id}; this model has ids 0 to {vocab_size - 1}")
