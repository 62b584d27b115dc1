"""What is hidden together: every rule, its errors, and text in which characters and tokens do not match."""

import json
import random
import re
from functools import cache

import numpy as np
import polars as pl
import pytest
from tokenizers_for_tests import byte_level, sentencepiece

from engine.errors import ImpactError, InputError, PromptError, SelectionError
from engine.text.prompts import Reading, read_prompt, read_prompts
from engine.text.rules import read_rule

LIMITS = {"vocab_size": 5000, "max_positions": 2000}
ALL = Reading(offsets=True)


@cache
def embedded():
    from engine.experiment import AttentionMasker

    return AttentionMasker.from_pretrained().tokenizer


TOKENIZERS = [embedded, lambda: byte_level(400), sentencepiece]


def groups(text, mask, tokenizer=None, *, prompt_id=None, **choices):
    """The groups as a list of (name, positions)."""
    rule = read_rule(mask, **choices)
    prompt = read_prompt(text, tokenizer or embedded(), reading=ALL, **LIMITS)
    found = rule.groups(prompt, prompt_id=prompt_id)
    assert all(positions == tuple(sorted(set(positions))) and positions for positions in found.positions)
    return list(zip(found.names, found.positions, strict=True))


def names(text, mask, tokenizer=None, **choices):
    return [name for name, _ in groups(text, mask, tokenizer, **choices)]


def test_a_plain_reading_knows_nothing_more():
    prompt = read_prompt("The Eiffel Tower", embedded(), **LIMITS)
    assert (prompt.text, prompt.offsets, prompt.special, prompt.roles) == (None, (), (), ())


@pytest.mark.parametrize("make", TOKENIZERS)
def test_offsets_cover_the_text_and_bytes_share_their_character(make):
    text = "The 🗼 is e\u0301t  שלום\n日本"
    prompt = read_prompt(text, make(), reading=ALL, **LIMITS)
    assert prompt.text == text
    assert {place for span in prompt.offsets if span for place in range(*span)} == set(range(len(text)))
    tower = [span for span in prompt.offsets if span and span[0] <= text.index("🗼") < span[1]]
    assert tower == [(4, 5)] * 4


def test_special_tokens_are_marked_and_those_added_stand_for_no_text():
    from tokenizers.processors import TemplateProcessing

    tokenizer = sentencepiece()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    prompt = read_prompt("is A", tokenizer, reading=ALL, **LIMITS)
    assert prompt.offsets[0] is None
    assert prompt.special == (True, *(False,) * (len(prompt) - 1))
    assert names("is A", "words", tokenizer) == ["<s>", "is", " ", "A"]
    assert names("is A", "words", tokenizer, skip_special=True) == ["is", " ", "A"]
    assert names("is A", "tokens", tokenizer)[0] == "<s>"
    assert "<s>" not in names("is A", "tokens", tokenizer, skip_special=True)


def test_special_alone_needs_no_text():
    prompt = read_prompt([0, 5, 6], byte_level(400), reading=Reading(special=True), **LIMITS)
    assert (prompt.special, prompt.offsets, prompt.text) == ((True, False, False), (), None)
    with pytest.raises(PromptError, match="no tokenizer"):
        read_prompt([0, 5], None, reading=Reading(special=True), **LIMITS)


def test_token_ids_have_no_characters():
    with pytest.raises(PromptError, match="token ids"):
        read_prompt([0, 5], embedded(), reading=ALL, **LIMITS)


def test_tokens_are_each_their_own():
    prompt = read_prompt("The Eiffel Tower", embedded(), **LIMITS)
    rule = read_rule("tokens")
    assert (rule.is_tokens, rule.needs_offsets, rule.needs_special) == (True, False, False)
    assert rule.groups(prompt).names == prompt.pieces
    assert rule.groups(prompt).positions == tuple((p,) for p in range(len(prompt)))
    assert read_rule("tokens", tokens=[1, 0]).groups(prompt).positions == ((0,), (1,))
    with pytest.raises(SelectionError, match="no token 99"):
        read_rule("tokens", tokens=[99]).groups(prompt)


def test_words_are_what_whitespace_divides():
    assert names("The Eiffel Tower is in", "words") == ["The", "Eiffel", "Tower", "is", "in"]
    assert names("don't stop,  now", "words")[0] == "don't"
    assert [name.strip() for name in names(" a\n\tb ", "words") if name.strip()] == ["a", "b"]


def test_equal_words_are_two_groups():
    found = groups("The Eiffel The Eiffel", "words")
    assert [name for name, _ in found] == ["The", "Eiffel", "The", "Eiffel"]
    assert len({positions for _, positions in found}) == 4


def test_whitespace_alone_is_a_group_of_its_own():
    assert groups("A\n\nA", "words", byte_level(400)) == [("A", (0,)), ("\n", (1,)), ("\n", (2,)), ("A", (3,))]


def test_a_special_token_in_the_text_ends_a_word():
    tokenizer = byte_level(400)
    assert names("is<|end|>is is", "words", tokenizer) == ["is", "<|end|>", "is", "is"]
    assert names("is<|end|>is is", "words", tokenizer, skip_special=True) == ["is", "is", "is"]


def test_a_token_across_two_words_is_the_first_ones():
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    vocab = {letter: i for i, letter in enumerate("ab c")} | {"b ": 4, "b c": 5}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[("b", " "), ("b ", "c")]))
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert groups("ab cc", "words", tokenizer) == [("ab", (0, 1)), ("cc", (2,))]
    assert groups("ab c", "words", tokenizer) == [("ab", (0, 1))]
    assert groups("ab c", "regex:c", tokenizer) == [("c", (1,))]


@pytest.mark.parametrize("trim", [True, False])
def test_a_space_may_be_in_the_offsets_of_a_token_or_not(trim):
    from tokenizers.processors import ByteLevel

    tokenizer = byte_level(400)
    tokenizer.backend_tokenizer.post_processor = ByteLevel(trim_offsets=trim, add_prefix_space=False)
    text = "The Eiffel Tower is in"
    words = [(name, positions) for name, positions in groups(text, "words", tokenizer) if name.strip()]
    assert [name for name, _ in words] == text.split()
    for name, positions in words:
        assert groups(text, f"regex:{name}", tokenizer)[0][1] == positions


@pytest.mark.parametrize("make", TOKENIZERS)
def test_words_cover_every_position_once(make):
    draw, tokenizer = random.Random(1), make()
    for _ in range(60):
        text = "x" + "".join(
            draw.choice("ab é\u0301 \n\t🗼👩‍👩‍👧שלום\u200b日\u3000<|end|></s>") for _ in range(draw.randrange(1, 25))
        )
        prompt = read_prompt(text, tokenizer, reading=ALL, **LIMITS)
        found = read_rule("words").groups(prompt)
        assert sorted(p for positions in found.positions for p in positions) == list(range(len(prompt)))
        assert list(found.positions) == sorted(found.positions)
        slow = {p: slow_word(prompt, p) for p in range(len(prompt))}
        for name, positions in zip(found.names, found.positions, strict=True):
            assert {slow[p] for p in positions} == {slow[positions[0]]}
            assert name in text or len(positions) == 1


def slow_word(prompt, position):
    """The first word that a token touches, or the token itself: the slow twin, without special tokens in words."""
    characters, span = list(prompt.text), prompt.offsets[position]
    for special, (first, past) in [(s, o) for s, o in zip(prompt.special, prompt.offsets, strict=True) if s and o]:
        characters[first:past] = " " * (past - first) if special else characters[first:past]
    for place in range(*span) if span else ():
        if not characters[place].isspace():
            while place and not characters[place - 1].isspace():
                place -= 1
            return "word", place
    return "own", position


@pytest.mark.parametrize("make", TOKENIZERS)
def test_ranges_and_matches_are_the_tokens_that_overlap(make):
    draw, tokenizer = random.Random(2), make()
    text = "The 🗼 is e\u0301t  שלום\n日本 a"
    prompt = read_prompt(text, tokenizer, reading=ALL, **LIMITS)
    for _ in range(60):
        first, past = sorted(draw.sample(range(len(text) + 1), 2))
        expected = tuple(p for p, span in enumerate(prompt.offsets) if span and span[0] < past and span[1] > first)
        assert groups(text, f"chars:{first}-{past - 1}", tokenizer) == [(text[first:past], expected)]
        assert (text[first:past], expected) in groups(text, f"regex:{re.escape(text[first:past])}", tokenizer)


def test_matches_come_in_order_and_may_share_tokens():
    assert names("The Eiffel Tower is in", "regex:[A-Z]\\w+") == ["The", "Eiffel", "Tower"]
    assert names("The Eiffel Tower", "regex:x*|E.*r") == ["Eiffel Tower"]
    assert names("aaaa b", "regex:(?=(a))a", byte_level(400)) == ["a"] * 4
    assert names("a: b", "regex:a:")[0] == "a:"


def test_characters_include_both_ends():
    assert names("The Eiffel Tower", "chars:4-9,0") == ["Eiffel", "T"]
    assert names("The Eiffel Tower", "chars:0-15") == ["The Eiffel Tower"]


def test_positions_go_together_by_plus_and_by_range():
    pieces = read_prompt("The Eiffel Tower is in", embedded(), **LIMITS).pieces
    assert groups("The Eiffel Tower is in", "positions:2+0,1-3,1") == [
        (pieces[0] + pieces[2], (0, 2)),
        ("".join(pieces[1:4]), (1, 2, 3)),
        (pieces[1], (1,)),
    ]


def test_equal_positions_are_kept_under_other_names():
    assert len(groups("The Eiffel Tower", "positions:1,1,0+1,1+0")) == 2
    found = groups("The Eiffel Tower", {"a": [1], "b": [1], "c": (0, 1, 1)})
    assert found == [("a", (1,)), ("b", (1,)), ("c", (0, 1))]


def test_positions_come_from_python():
    pieces = read_prompt("The Eiffel Tower", embedded(), **LIMITS).pieces
    assert groups("The Eiffel Tower", [[1, 0], np.array([1])]) == [(pieces[0] + pieces[1], (0, 1)), (pieces[1], (1,))]
    assert not read_rule([[1]]).needs_offsets


@pytest.mark.parametrize(
    "mask",
    [
        *("", "token", "tokens:1", "words:", "regex:", "regex", "chars:", "spans:", "positions", "regex:(", "regex:["),
        *("chars:x", "chars:3-1", "chars:1,,2", "positions:1++2", "positions:a", "positions:1;2"),
        "regex:a{99999999999999}",
    ],
)
def test_words_that_are_no_rule(mask):
    with pytest.raises(SelectionError) as caught:
        read_rule(mask)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "mask",
    [[], {}, [1, 2], [[]], [[1, -1]], [[1.5]], [[True]], [["1"]], "1", ["words"], {"a": 1}, {"a": []}, 7, None, b"a"],
)
def test_groups_that_are_none(mask):
    with pytest.raises(SelectionError):
        read_rule(mask)


@pytest.mark.parametrize("mask", ["words", "regex:a", "chars:1", "positions:1", [[1]]])
def test_chosen_tokens_go_with_tokens_only(mask):
    with pytest.raises(SelectionError, match="--tokens"):
        read_rule(mask, tokens=[1])
    if mask != "words":
        with pytest.raises(SelectionError, match="--skip-special"):
            read_rule(mask, skip_special=True)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ("regex:zzz", "'zzz' matches nothing in the prompt's 16 characters"),
        ("regex:x*", "matches nothing"),
        ("chars:10-16", "no characters 10 to 16 .* of 16 characters"),
        ("positions:0,99", "no token 99 in a prompt of 3 tokens"),
        ([[99]], "no token 99"),
    ],
)
def test_what_a_prompt_does_not_have_is_the_prompts_error(mask, message):
    with pytest.raises(PromptError, match=message):
        groups("The Eiffel Tower", mask)


def test_nothing_but_special_tokens_is_an_error():
    for mask in ("tokens", "words"):
        with pytest.raises(PromptError, match="2 tokens is special"):
            groups("<|end|><|end|>", mask, byte_level(400), skip_special=True)


def test_a_rule_serves_a_set():
    rule, texts = read_rule("regex:is"), ["A is A", "A", "is is", "is"]
    found = read_prompts(texts, byte_level(400), reading=ALL, **LIMITS)
    outcomes = [each if isinstance(each, ImpactError) else attempt(rule, each) for each in found]
    assert [isinstance(each, PromptError) for each in outcomes] == [False, True, False, True]
    assert len(outcomes[2]) == 2


def attempt(rule, prompt):
    try:
        return rule.groups(prompt)
    except PromptError as error:
        return error


ROWS = [
    {"prompt_id": "p", "name": "subject", "start": 4, "end": 16, "positions": None},
    {"prompt_id": 7, "name": None, "start": 0, "end": 3, "positions": None},
    {"prompt_id": None, "name": None, "start": None, "end": None, "positions": "0+2"},
]


def write(folder, suffix, rows=ROWS):
    path = folder / f"spans{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps(rows))
    elif suffix in (".jsonl", ".ndjson"):
        path.write_text("".join(json.dumps({k: v for k, v in row.items() if v is not None}) + "\n\n" for row in rows))
    else:
        frame = pl.DataFrame([row | {"prompt_id": row["prompt_id"] and str(row["prompt_id"])} for row in rows])
        frame.write_csv(path) if suffix == ".csv" else frame.write_parquet(path)
    return path


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".ndjson", ".csv", ".parquet"])
def test_spans_come_from_files_of_each_kind(tmp_path, suffix):
    mask, text = f"spans:{write(tmp_path, suffix)}", "The Eiffel Tower"
    assert read_rule(mask).needs_offsets
    assert groups(text, mask, prompt_id="p") == [("subject", (1, 2)), ("The Tower", (0, 2))]
    assert groups(text, mask, prompt_id=7) == [("The", (0,)), ("The Tower", (0, 2))]
    assert groups(text, mask, prompt_id="7") == groups(text, mask, prompt_id=7)
    assert groups(text, mask) == [("The Tower", (0, 2))]


def test_positions_in_files_are_lists_too_and_need_no_offsets(tmp_path):
    pl.DataFrame({"positions": [[1, 0], [2]], "label": ["x", "y"]}).write_parquet(tmp_path / "a.parquet")
    (tmp_path / "a.json").write_text('[{"positions": [1, 0]}, {"positions": "2-2"}]')
    (tmp_path / "a.csv").write_text("\ufeffpositions,name\n1+0,\n2,\n", encoding="utf-8")
    prompt = read_prompt("The Eiffel Tower", embedded(), **LIMITS)
    for suffix in ("parquet", "json", "csv"):
        rule = read_rule(f"spans:{tmp_path}/a.{suffix}")
        assert not rule.needs_offsets
        assert rule.groups(prompt).positions == ((0, 1), (2,))


def test_whole_numbers_are_read_where_a_file_knows_only_floats(tmp_path):
    frame = pl.DataFrame({"prompt_id": [1.0, float("nan")], "start": [0.0, 4.0], "end": [3.0, 10.0]})
    frame.write_parquet(tmp_path / "a.parquet")
    assert names("The Eiffel Tower", f"spans:{tmp_path}/a.parquet", prompt_id=1) == ["The", "Eiffel"]


def test_a_prompt_without_a_span_is_an_error_of_the_prompt(tmp_path):
    mask = f"spans:{write(tmp_path, '.json', ROWS[:2])}"
    with pytest.raises(PromptError, match="no span for the prompt 'q'"):
        groups("The Eiffel Tower", mask, prompt_id="q")
    with pytest.raises(PromptError, match="without id"):
        groups("The Eiffel Tower", mask)
    with pytest.raises(PromptError, match="no characters 4 to 15"):
        groups("A The", mask, prompt_id="p")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"x", "end it in"),
        ("a.json", b"", "cannot be read"),
        ("a.json", b"[]", "no spans"),
        ("a.json", b'{"start": 1}', "list of objects"),
        ("a.json", b"[3]", "entry 1 is no object"),
        ("a.json", b"[" * 100_000, "nested too deeply"),
        ("a.jsonl", b"\n\n", "no spans"),
        ("a.jsonl", b'{"start": 1, "end": 2}\n{"start"', "line 2 is no JSON"),
        ("a.jsonl", b"\xff\xfe", "no JSON"),
        ("a.csv", b"", "cannot be read"),
        ("a.csv", b"start,end\n", "no spans"),
        ("a.csv", b"start,end\n1,2,3\n", "cannot be read"),
        ("a.csv", b"start;end\n1;2\n", "its columns are: 'start;end'"),
        ("a.csv", b"start,name\n1,2\n", "no column 'positions', nor 'start' and 'end'"),
        ("a.csv", b"start,end\n1,\n", "row 1 goes from '1' to None"),
        ("a.csv", b"start,end\n0,2\n5,5\n", "row 2 goes from '5' to '5'"),
        ("a.csv", b"start,end\n-1,5\n", "row 1"),
        ("a.csv", b"start,end\na,b\n", "row 1"),
        ("a.csv", b"start,end,positions\n1,2,3\n", "gives positions and start and end"),
        ("a.csv", b"start,end,positions,name\n,,,x\n", "gives no span"),
        ("a.csv", b"positions\n1+x\n", "row 1: positions"),
        ("a.json", b'[{"positions": [1, "2"]}]', "entry 1: positions"),
        ("a.json", b'[{"positions": []}]', "entry 1: positions"),
        ("a.json", b'[{"start": 1.5, "end": 2}]', "entry 1 goes from 1.5"),
        ("a.json", b'[{"start": true, "end": 2}]', "entry 1 goes from True"),
        ("a.parquet", b"PAR1 is not enough", "cannot be read"),
    ],
)
def test_files_that_hold_no_spans(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_rule(f"spans:{tmp_path / name}")
    assert "\n" not in str(caught.value)


def test_a_file_of_spans_must_be_there(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        read_rule(f"spans:{tmp_path}/none.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(InputError, match="folder"):
        read_rule(f"spans:{tmp_path}/folder.csv")


@pytest.mark.parametrize("make", TOKENIZERS)
@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("see 👩\u200d👩\u200d👧 go", "👩\u200d👩\u200d👧"),
        ("a e\u0301te\u0301 b", "e\u0301te\u0301"),
        ("x שלום עולם y", "שלום"),
        ("a\u00a0b\u3000c", "b"),
    ],
)
def test_words_of_any_script_are_whole(make, text, word):
    tokenizer = make()
    prompt = read_prompt(text, tokenizer, reading=ALL, **LIMITS)
    found = dict(groups(text, "words", tokenizer))
    start = text.index(word)
    touching = {p for p, span in enumerate(prompt.offsets) if span and span[0] < start + len(word) and span[1] > start}
    assert set(found[word]) == touching
    assert groups(text, f"chars:{start}-{start + len(word) - 1}", tokenizer) == [(word, found[word])]
