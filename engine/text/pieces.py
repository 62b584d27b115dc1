"""One readable text per token, such that two different tokens never look the same.

A leading space stays. A token whose bytes are no whole characters is written as its bytes, ``<0xE2><0x82>``; a real
text that contains ``<0x`` gets a backslash before it, so that it cannot be taken for bytes.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any


def readable_pieces(token_ids: Sequence[int], tokenizer: Any) -> tuple[str, ...]:
    """The text of every token in isolation; without a tokenizer, or for an id it does not know, the id."""
    if tokenizer is None:
        return tuple(str(token_id) for token_id in token_ids)
    names = tokenizer.convert_ids_to_tokens(list(token_ids))
    added = tokenizer.added_tokens_decoder
    read = _from_byte_level if _is_byte_level(tokenizer) else _from_sentencepiece
    return tuple(
        str(token_id) if name is None else escape(name) if token_id in added else read(name)
        for token_id, name in zip(token_ids, names, strict=True)
    )


def escape(text: str) -> str:
    """Text as it is, save that ``<0x`` gets a backslash, because it begins the form of bytes."""
    return text.replace("<0x", "\\<0x")


def _from_byte_level(name: str) -> str:
    """A name in the byte-level alphabet, where every byte of the text is one printable character."""
    alphabet = byte_alphabet()
    if not all(character in alphabet for character in name):
        return escape(name)
    data = bytes(alphabet[character] for character in name)
    try:
        return escape(data.decode("utf-8"))
    except UnicodeDecodeError:
        return "".join(f"<0x{byte:02X}>" for byte in data)


def _from_sentencepiece(name: str) -> str:
    """A SentencePiece name, where a low line stands for a space and byte tokens are named ``<0xHH>``."""
    return name if re.fullmatch(r"<0x[0-9A-F]{2}>", name) else escape(name.replace("\u2581", " "))


def _is_byte_level(tokenizer: Any) -> bool:
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    return decoder is not None and b'"ByteLevel"' in decoder.__getstate__()


@lru_cache(maxsize=1)
def byte_alphabet() -> dict[str, int]:
    """The byte-level alphabet of GPT-2 (Radford et al. 2019): printable Latin-1 is itself, the rest is shifted."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
