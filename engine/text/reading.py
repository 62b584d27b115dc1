"""What is read of a prompt beside its token ids, and what a tokenizer says of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.errors import ModelError, PromptError, is_panic
from engine.text.chat import Conversation

TEXTS = (str, Conversation)
"""What a tokenizer reads: a prompt as it is, or in a chat."""
_NOWHERE = (-1, -1)


@dataclass(frozen=True)
class Reading:
    """What is read beside token ids and pieces; in a ``chat`` a prompt is what the user says, after ``system``."""

    chat: bool = False
    system: str | None = None
    offsets: bool = False
    special: bool = False


PLAIN = Reading()


def suited(found: str | tuple[int, ...], tokenizer: Any, reading: Reading) -> str | tuple[int, ...]:
    """What was found, if all that is asked of it can be known. Raises ``PromptError``."""
    if isinstance(found, tuple) and (reading.chat or reading.offsets):
        raise PromptError(
            "the prompt is token ids, and a chat is made of text; give text, or leave --chat out"
            if reading.chat
            else "the prompt is token ids, which have no words or characters; give text, or choose tokens or positions"
        )
    if tokenizer is None:
        raise PromptError("this model has no tokenizer to say which tokens are special; leave that question out")
    if reading.offsets and not tokenizer.is_fast:
        raise PromptError(
            "this model's tokenizer does not say which characters a token stands for; give a model with a fast "
            "tokenizer (tokenizer.json), or choose tokens or positions"
        )
    return found


def encoded(
    texts: list[str | Conversation], tokenizer: Any, reading: Reading
) -> tuple[list[tuple[int, ...]], list[dict[str, Any]]]:
    """Token ids and notes of checked texts, all in one call: a call costs more than a short text."""
    if not texts:
        return [], []
    if not reading.chat and not reading.offsets:
        return [tuple(ids) for ids in _called(tokenizer, texts)["input_ids"]], [{}] * len(texts)
    encoding = _called(
        tokenizer,
        [each.written if isinstance(each, Conversation) else each for each in texts],
        add_special_tokens=not reading.chat,
        return_offsets_mapping=tokenizer.is_fast,
    )
    ids = [tuple(each) for each in encoding["input_ids"]]
    offsets = encoding["offset_mapping"] if tokenizer.is_fast else [[_NOWHERE] * len(each) for each in ids]
    return ids, [_notes(*each, reading) for each in zip(texts, offsets, strict=True)]


def _called(tokenizer: Any, texts: Sequence[str | Conversation], **more: bool) -> Any:
    """What the tokenizer makes of texts. Raises ``ModelError`` where it fails: its files are someone's program."""
    try:
        return tokenizer(texts, verbose=False, **more)
    except BaseException as error:
        if not (isinstance(error, Exception) or is_panic(error)) or isinstance(error, MemoryError):
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelError(
            f"the model's tokenizer fails on a text ({reason}); check tokenizer.json and tokenizer_config.json"
        ) from error


def _notes(text: str | Conversation, offsets: list[tuple[int, int]], reading: Reading) -> dict[str, Any]:
    """What there is to say of the tokens of one text, as fields of ``Prompt``."""
    if isinstance(text, str):
        return {"text": text, "offsets": tuple((first, past) if first < past else None for first, past in offsets)}
    own = {"text": text.prompt, "offsets": text.own(offsets)} if reading.offsets else {}
    return own | {"roles": text.roles(offsets)}


def special_ids(tokenizer: Any) -> set[int]:
    """The ids that are special to the tokenizer; none where there is none."""
    if tokenizer is None:
        return set()
    added = tokenizer.added_tokens_decoder.items()
    return {*tokenizer.all_special_ids, *(token_id for token_id, token in added if token.special)}
