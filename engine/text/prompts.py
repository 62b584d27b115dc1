"""Text to token ids. This file and ``pieces`` are the only users of a tokenizer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from engine.errors import PromptError
from engine.text.chat import ChatTemplate, Conversation
from engine.text.pieces import readable_pieces


@dataclass(frozen=True)
class Reading:
    """What is read beside token ids and pieces; in a ``chat`` a prompt is what the user says, after ``system``."""

    chat: bool = False
    system: str | None = None
    offsets: bool = False
    special: bool = False


PLAIN = Reading()


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
    sources: Sequence[Any], tokenizer: Any, *, vocab_size: int, max_positions: int, reading: Reading = PLAIN
) -> list[Prompt | PromptError]:
    """Tokenize texts (or take token ids as they are) and check that the model can read them.

    In the place of an empty or one-token prompt, one longer than ``max_positions``, an id outside the vocabulary, text
    that is not valid Unicode, text without a tokenizer, and what ``reading`` asks in vain stands the ``PromptError``
    that says so.
    """
    found = [_attempt(_readable, source, tokenizer) for source in sources]
    if reading != PLAIN:
        found = [_attempt(_suited, each, tokenizer, reading) for each in found]
    if reading.chat:
        converse = partial(ChatTemplate(tokenizer, reading.system).conversation, located=reading.offsets)
        found = [_attempt(converse, each) for each in found]
    encoded = iter(_encoded([each for each in found if isinstance(each, _TEXTS)], tokenizer, reading))
    noted = [next(encoded) if isinstance(each, _TEXTS) else (each, _NOTHING) for each in found]
    checked = [(_attempt(_checked_ids, ids, vocab_size, max_positions), notes) for ids, notes in noted]
    different = sorted({token_id for ids, _ in checked if isinstance(ids, tuple) for token_id in ids})
    piece = dict(zip(different, readable_pieces(different, tokenizer), strict=True)).__getitem__
    prompts = [
        Prompt(ids, tuple(map(piece, ids)), **notes) if isinstance(ids, tuple) else ids for ids, notes in checked
    ]
    return prompts if reading == PLAIN else _marked(prompts, tokenizer)


def read_prompt(
    source: Any, tokenizer: Any, *, vocab_size: int, max_positions: int, reading: Reading = PLAIN
) -> Prompt:
    """As ``read_prompts``, for one; raises the ``PromptError``."""
    (found,) = read_prompts([source], tokenizer, vocab_size=vocab_size, max_positions=max_positions, reading=reading)
    if isinstance(found, PromptError):
        raise found
    return found


_NOTHING: dict[str, Any] = {}
_TEXTS = (str, Conversation)
_NOWHERE = (-1, -1)


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


def _suited(found: str | tuple[int, ...], tokenizer: Any, reading: Reading) -> str | tuple[int, ...]:
    """What was found, if all that is asked of it can be known. Raises ``PromptError``."""
    if isinstance(found, tuple) and (reading.chat or reading.offsets):
        what = "a chat is" if reading.chat else "words, patterns, characters and spans of them are"
        raise PromptError(f"{what} read from text, and this prompt is token ids; give text, or choose tokens")
    if tokenizer is None:
        raise PromptError("this model has no tokenizer to say which tokens are special; leave that question out")
    if reading.offsets and not tokenizer.is_fast:
        raise PromptError(
            "this model's tokenizer does not say which characters a token stands for; give a model with a fast "
            "tokenizer (tokenizer.json), or choose tokens or positions"
        )
    return found


def _encoded(
    texts: list[str | Conversation], tokenizer: Any, reading: Reading
) -> list[tuple[tuple[int, ...], dict[str, Any]]]:
    """Token ids and notes of checked texts, all in one call: a call costs more than a short text."""
    if not texts:
        return []
    if not reading.chat and not reading.offsets:
        return [(tuple(ids), _NOTHING) for ids in tokenizer(texts, verbose=False)["input_ids"]]
    encoding = tokenizer(
        [each.written if isinstance(each, Conversation) else each for each in texts],
        verbose=False,
        add_special_tokens=not reading.chat,
        return_offsets_mapping=tokenizer.is_fast,
    )
    ids = [tuple(each) for each in encoding["input_ids"]]
    offsets = encoding["offset_mapping"] if tokenizer.is_fast else [[_NOWHERE] * len(each) for each in ids]
    return list(zip(ids, [_notes(*each, reading) for each in zip(texts, offsets, strict=True)], strict=True))


def _notes(text: str | Conversation, offsets: list[tuple[int, int]], reading: Reading) -> dict[str, Any]:
    """What there is to say of the tokens of one text, as fields of ``Prompt``."""
    if isinstance(text, str):
        return {"text": text, "offsets": tuple((first, past) if first < past else None for first, past in offsets)}
    own = {"text": text.prompt, "offsets": text.own(offsets)} if reading.offsets else {}
    return own | {"roles": text.roles(offsets)}


def _marked(prompts: list[Prompt | PromptError], tokenizer: Any) -> list[Prompt | PromptError]:
    """The prompts, with each token that is special to the tokenizer marked as such."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).items()
    special = {*getattr(tokenizer, "all_special_ids", ()), *(token_id for token_id, token in added if token.special)}
    return [
        replace(each, special=tuple(token_id in special for token_id in each.token_ids))
        if isinstance(each, Prompt)
        else each
        for each in prompts
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


def _checked_ids(token_ids: tuple[int, ...], vocab_size: int, max_positions: int) -> tuple[int, ...]:
    """Raise ``PromptError`` unless the model can read these ids."""
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
    return token_ids
