"""Text to token ids. This folder is the only user of a tokenizer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from engine.errors import PromptError
from engine.text.chat import ChatTemplate
from engine.text.pieces import readable_pieces
from engine.text.reading import PLAIN, TEXTS, Reading, encoded, special_ids, suited


@dataclass(frozen=True)
class Prompt:
    """Token ids, and for each the text that a person reads in its place (the id itself without a tokenizer)."""

    token_ids: tuple[int, ...]
    pieces: tuple[str, ...]
    text: str | None = None
    """The prompt's own text, in a chat what the user says; None unless offsets were asked for."""
    offsets: tuple[tuple[int, int] | None, ...] = ()
    """For each token the characters of ``text`` that it stands for (first, past the last); None where for none."""
    special: tuple[bool, ...] = ()
    """Whether each token is special to the tokenizer; empty for a plain reading."""
    roles: tuple[str | None, ...] = ()
    """In a chat, whose part of the conversation each token is in; None where that cannot be told."""

    def __len__(self) -> int:
        return len(self.token_ids)


def read_prompts(
    sources: Sequence[Any],
    tokenizer: Any,
    *,
    vocab_size: int,
    max_positions: int,
    min_tokens: int = 2,
    num_following: int = 0,
    reading: Reading = PLAIN,
) -> list[Prompt | PromptError]:
    """Tokenize texts (or take token ids as they are) and check that the model can read them.

    In the place of a prompt shorter than ``min_tokens`` (a lone token can be hidden only where there are sinks) or too
    long for ``max_positions`` with ``num_following`` tokens of an answer behind it, an id outside the vocabulary, text
    that is not valid Unicode, text without a tokenizer, and what ``reading`` asks in vain stands the ``PromptError``
    that says so.
    """
    found = [_attempt(_readable, source, tokenizer) for source in sources]
    if reading != PLAIN:
        found = [_attempt(suited, each, tokenizer, reading) for each in found]
    if reading.chat:
        converse = partial(ChatTemplate(tokenizer, reading.system).conversation, located=reading.offsets)
        found = [_attempt(converse, each) for each in found]
    ids, notes = encoded([each for each in found if isinstance(each, TEXTS)], tokenizer, reading)
    read = iter(ids)
    limits = (vocab_size, min_tokens, max_positions, num_following)
    checked = [_attempt(_checked_ids, next(read) if isinstance(each, TEXTS) else each, *limits) for each in found]
    different = sorted({token_id for each in checked if isinstance(each, tuple) for token_id in each})
    piece = dict(zip(different, readable_pieces(different, tokenizer), strict=True)).__getitem__
    prompts = [Prompt(each, tuple(map(piece, each))) if isinstance(each, tuple) else each for each in checked]
    return prompts if reading == PLAIN else _described(prompts, found, notes, tokenizer)


def read_prompt(source: Any, tokenizer: Any, **limits: Any) -> Prompt:
    """As ``read_prompts``, for one; raises the ``PromptError``."""
    (found,) = read_prompts([source], tokenizer, **limits)
    if isinstance(found, PromptError):
        raise found
    return found


def _attempt(step: Callable[..., Any], source: Any, *arguments: Any) -> Any:
    """What ``step`` makes of a prompt, or the error that it met; an error from before stays."""
    if isinstance(source, PromptError):
        return source
    try:
        return step(source, *arguments)
    except PromptError as error:
        return error


def _readable(source: Any, tokenizer: Any) -> str | tuple[int, ...]:
    """A text that can be tokenized, or token ids. Raises ``PromptError``."""
    if not isinstance(source, str):
        return _as_ids(source)
    if tokenizer is None:
        raise PromptError(
            "this model has no tokenizer, so it reads no text; give a folder with tokenizer files, or ids from Python"
        )
    if not source:
        raise PromptError("the prompt is empty; give at least two tokens of text")
    try:
        source.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(f"the prompt is not valid text: {error.reason} at character {error.start}") from None
    return source


def _described(
    prompts: list[Prompt | PromptError], found: list[Any], notes: list[dict[str, Any]], tokenizer: Any
) -> list[Prompt | PromptError]:
    """The prompts with what was noted of those that were texts, and with special tokens marked."""
    waiting, special = iter(notes), special_ids(tokenizer)
    noted = [next(waiting) if isinstance(each, TEXTS) else {} for each in found]
    return [
        replace(each, special=tuple(token_id in special for token_id in each.token_ids), **note)
        if isinstance(each, Prompt)
        else each
        for each, note in zip(prompts, noted, strict=True)
    ]


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


def _checked_ids(
    token_ids: tuple[int, ...], vocab_size: int, min_tokens: int, max_positions: int, num_following: int
) -> tuple[int, ...]:
    """Raise ``PromptError`` unless the model can read these ids."""
    if len(token_ids) < min_tokens:
        raise PromptError(
            f"the prompt has {len(token_ids)} of the two tokens it needs: with a lone token masked "
            "there is nothing left to attend to; give a longer prompt"
        )
    if len(token_ids) + num_following > max_positions:
        answer = f" and {num_following} of the answer behind it" if num_following else ""
        raise PromptError(
            f"the prompt has {len(token_ids)} tokens{answer}, the model reads {max_positions}; shorten "
            + ("one of them" if answer else "it")
        )
    for token_id in (min(token_ids), max(token_ids)):
        if not 0 <= token_id < vocab_size:
            raise PromptError(f"there is no token {token_id}; this model has ids 0 to {vocab_size - 1}")
    return token_ids
