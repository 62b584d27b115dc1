"""Text to ids and readable pieces, and every prompt that must be refused."""

import numpy as np
import pytest
import torch
from tokenizers_for_tests import byte_level, sentencepiece

from engine.errors import PromptError, SelectionError
from engine.text.knockouts import Knockouts, select, single_tokens
from engine.text.pieces import byte_alphabet, readable_pieces
from engine.text.prompts import read_prompt

LIMITS = {"vocab_size": 500, "max_positions": 20}


def test_the_byte_alphabet_is_that_of_tokenizers():
    from tokenizers.pre_tokenizers import ByteLevel

    assert set(byte_alphabet()) == set(ByteLevel.alphabet())
    assert sorted(byte_alphabet().values()) == list(range(256))


def test_every_piece_of_a_byte_level_vocabulary_is_its_own():
    tokenizer = byte_level(400)
    ids = list(range(len(tokenizer)))
    pieces = readable_pieces(ids, tokenizer)
    assert len(set(pieces)) == len(ids)
    for token_id, piece in zip(ids, pieces, strict=True):
        text = tokenizer.decode([token_id], clean_up_tokenization_spaces=False)
        assert "\ufffd" in text or piece.replace("\\<0x", "<0x") == text


@pytest.mark.parametrize(
    "text",
    ["The Eiffel Tower is in", " leading", "héllo you", "日本語 🗼", "a\nb\tc", "<0x41>", "\\<0x41>", "<|end|> x"],
)
def test_pieces_join_to_the_text(text):
    tokenizer = byte_level(400)
    prompt = read_prompt(text, tokenizer, **LIMITS)
    assert b"".join(map(as_bytes, prompt.pieces)).decode() == text


def as_bytes(piece):
    """The bytes that a piece stands for: written out, or a text in which ``<0x`` was escaped."""
    if piece.startswith("<0x"):
        return bytes.fromhex(piece.replace("<0x", "").replace(">", ""))
    return piece.replace("\\<0x", "<0x").encode()


def test_pieces_of_a_character_are_shown_as_bytes():
    pieces = read_prompt("🗼", byte_level(400), **LIMITS).pieces
    assert "".join(pieces) == "<0xF0><0x9F><0x97><0xBC>"


def test_sentencepiece_names_are_read_and_byte_tokens_keep_theirs():
    tokenizer = sentencepiece()
    pieces = readable_pieces(tokenizer("is A\u00e9")["input_ids"], tokenizer)
    assert pieces == ("\u2581is".replace("\u2581", " "), " ", "A", "<0xC3>", "<0xA9>") or "".join(pieces).startswith(
        " "
    )
    everything = readable_pieces(range(len(tokenizer)), tokenizer)
    assert len(set(everything)) == len(tokenizer)


def test_without_a_tokenizer_a_piece_is_its_id():
    prompt = read_prompt([12, 7, 99], None, **LIMITS)
    assert (prompt.token_ids, prompt.pieces) == ((12, 7, 99), ("12", "7", "99"))


def test_an_id_the_tokenizer_does_not_know_is_shown_as_its_number():
    assert readable_pieces([450], byte_level(400)) == ("450",)


@pytest.mark.parametrize("ids", [np.array([1, 2]), torch.tensor([[1, 2]]), (1, 2), range(1, 3), {"input_ids": [1, 2]}])
def test_ids_come_in_any_flat_sequence(ids):
    assert read_prompt(ids, None, **LIMITS).token_ids == (1, 2)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "empty"),
        ([], "empty"),
        ([3], "nothing left to attend to"),
        ("T", "nothing left to attend to"),
        (list(range(21)), "21 tokens"),
        ([1, 500], "no token 500"),
        ([-1, 5], "no token -1"),
        ([[1, 2], [3, 4]], "flat list"),
        ([1.5, 2.5], "whole-number"),
        (["a", "b"], "whole-number"),
        ([[1], [2, 3]], "flat list"),
        ([True, False], "whole-number"),
        (b"bytes", "flat list"),
        (None, "flat list"),
        (7, "flat list"),
        ({"a": 1}, "flat list"),
        ("a\ud800b", "not valid text"),
    ],
)
def test_bad_prompts_are_refused(source, message):
    with pytest.raises(PromptError, match=message):
        read_prompt(source, byte_level(400), **LIMITS)


def test_text_needs_a_tokenizer():
    with pytest.raises(PromptError, match="no tokenizer"):
        read_prompt("some text", None, **LIMITS)


def test_selection_is_sorted_and_each_once():
    assert select([3, 1, 1, np.int64(2)], 5, what="layer") == (1, 2, 3)
    assert select(None, 3, what="layer") == (0, 1, 2)


@pytest.mark.parametrize("chosen", [np.array([1, 2]), torch.tensor([2, 1]), {1, 2}, range(1, 3), (i for i in (1, 2))])
def test_a_selection_comes_in_any_collection(chosen):
    assert select(chosen, 5, what="layer") == (1, 2)


@pytest.mark.parametrize("chosen", [[], [5], [-1], [1.0], ["1"], [True], 3, np.array(2), slice(0, 2), "12", [[1], [2]]])
def test_bad_selections_are_refused(chosen):
    with pytest.raises(SelectionError, match=r"layer|layers"):
        select(chosen, 5, what="layer")


def test_cells_without_a_visible_key_are_undefined():
    knockouts = Knockouts(3, ((3,), (2, 3), (0, 1, 2, 3), (0, 1)))
    assert knockouts.undefined(None).tolist() == [False, False, True, False]
    assert knockouts.undefined(1).tolist() == [True, True, True, False]
    assert knockouts.undefined(2).tolist() == [False, True, True, False]
    assert single_tokens(4, None).masked == ((0,), (1,), (2,), (3,))
