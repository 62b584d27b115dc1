"""Prompts of any text, and of no text at all: measured and told as they are, or refused in a sentence."""

import io
import re

import numpy as np
import polars as pl
import pytest
import torch
from attacks import attack
from hostile import assert_brief
from hypothesis import given
from hypothesis import strategies as st

from engine import AttentionMasker
from engine.errors import ImpactError
from engine.findings.terminal import plain
from engine.summary import summarize
from engine.tables.results import scan_table, write_table

HARD = (
    *(
        "\x00",
        "\x07",
        "\x1b[31m",
        "\x1b]0;x\x07",
        "\x7f",
        "\x85",
        "\u2028",
        "\u2029",
        "\ufeff",
        "\r",
        "\r\n",
        "\n",
        "\t",
    ),
    *("\u0301", "e\u0301\u0301", "\u200b", "\u200d", "\u202e", "\u2066", "\ufe0f", "\U0001f469\u200d\U0001f52c", "🗼"),
    *("<|im_end|>", "<|endoftext|>", "<s>", "<0x41>", "\\<0x41>", "<0x", "\ufffd", "\U0010ffff", "\ue000", "ﷺ", "שלום"),
    *('"', "'", ",", ";", "=1+1", "<script>alert(1)</script>", "&lt;", "{{x}}", "%s", "\\", "\\n", "nan", "null", ""),
)
TEXTS = st.lists(
    st.one_of(st.sampled_from(HARD), st.text(max_size=6), st.sampled_from(("The", " is", " in"))), max_size=12
)
SURROGATES = st.lists(
    st.one_of(st.sampled_from(("\ud800", "\udfff", "a")), st.text(max_size=3)), min_size=1, max_size=5
)
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
SITES = 2 + 4

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def masker():
    return AttentionMasker.from_pretrained(device="cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("prompts")


def as_bytes(pieces):
    """The text that pieces stand for."""
    parts = (
        bytes.fromhex(re.sub(r"<0x|>", "", p)) if p.startswith("<0x") else p.replace("\\<0x", "<0x").encode()
        for p in pieces
    )
    return b"".join(parts)


def outcome(function, *args, **options):
    """What it gives, or the error of a user, in which nothing can disturb a terminal once it is shown."""
    try:
        return function(*args, **options)
    except ImpactError as error:
        assert_brief(error)
        return None


@given(st.one_of(TEXTS, SURROGATES).map("".join))
@attack("prompts: any text", quick=20, deep=4000)
def test_any_text_is_measured_as_it_stands(masker, place, text):
    impact = outcome(masker.measure, text, layers=[0], next_tokens=3)
    if impact is None:
        return
    table, tokens = impact.table(), masker.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert table.height == len(tokens) * SITES
    assert as_bytes(impact.pieces).decode() == text
    assert not CONTROL.search(summarize(impact))
    for suffix in (".csv", ".parquet", ".jsonl"):
        write_table(table, place / f"table{suffix}")
        back = scan_table(place / f"table{suffix}").collect()
        assert back["token_masked"].cast(pl.String).to_list() == table["token_masked"].cast(pl.String).to_list()
        assert np.allclose(back["l2_distance"], table["l2_distance"], rtol=1e-6, equal_nan=True)


@given(st.text(alphabet=st.characters(), min_size=1, max_size=4), st.integers(20_000, 100_000))
@attack("prompts: far too long", quick=3, deep=60)
def test_a_text_that_is_too_long_is_refused(masker, text, size):
    assert outcome(masker.measure, text * (size // len(text))) is None


NUMBERS = st.one_of(
    st.integers(-3, 600),
    st.sampled_from(
        (True, False, None, 1.0, 2.5, float("nan"), 1 << 40, -(1 << 70), "3", b"4", np.int64(5), np.float32(6))
    ),
)
ODD = st.one_of(
    st.lists(NUMBERS, max_size=6),
    st.lists(st.integers(0, 400), min_size=2, max_size=6).map(torch.tensor),
    st.lists(st.integers(0, 400), min_size=2, max_size=6).map(lambda ids: torch.tensor([ids])),
    st.lists(st.floats(), max_size=4).map(torch.tensor),
    st.lists(st.integers(0, 400), max_size=6).map(np.array),
    st.lists(st.lists(st.integers(0, 9), max_size=3), max_size=3),
    st.sampled_from(
        (None, 7, 2.5, b"The Eiffel Tower", {}, {"a": 1}, set(), object, lambda: 0, iter([1, 2, 3]), range(5))
    ),
    st.tuples(NUMBERS, NUMBERS),
)


@given(ODD)
@attack("prompts: what is no text", quick=20, deep=4000)
def test_anything_else_is_token_ids_or_refused(masker, prompt):
    found = outcome(masker.run, prompt, layers=[0])
    if found is not None:
        ids = [int(token) for token in np.ravel(list(prompt))]
        assert found["token_position"].n_unique() == len(ids)
        assert all(0 <= token < masker.view.vocab_size for token in ids)


IDS = st.one_of(
    st.integers(-(1 << 62), 1 << 62),
    st.text(max_size=8),
    st.sampled_from(("../../x", "", "\ud800", "a" * 10_000, None, True, 1.5, float("nan"), (1, 2), b"x", 1 << 60)),
)


@given(st.dictionaries(IDS, st.sampled_from(("The Eiffel Tower", "Paris is", "", "x")), max_size=5))
@attack("prompts: any ids", quick=20, deep=600)
def test_any_ids_are_kept_or_refused(masker, place, prompts):
    folder = place / f"set-{len(list(place.iterdir()))}"
    manifest = outcome(masker.run_dataset, prompts, folder, layers=[0])
    if manifest is not None:
        counts = manifest["counts"]
        assert counts["prompts"] + counts["rejected"] == len(prompts)
    assert all(path.name.startswith(("set-", "table")) for path in place.iterdir())


class Terminal(io.TextIOWrapper):
    """What a person looks at; into files and pipes the program writes UTF-8."""

    def isatty(self):
        return True


@given(st.lists(st.sampled_from(HARD), min_size=1, max_size=6).map("".join))
@attack("texts for a terminal", quick=20, deep=2000)
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "cp1252"])
def test_no_text_disturbs_a_terminal(monkeypatch, masker, encoding, text):
    from engine.files import show

    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", Terminal(written, encoding=encoding, errors="strict", write_through=True))
    show(plain(text, columns=80))
    assert not CONTROL.search(written.getvalue().decode(encoding).removesuffix("\n"))
