"""Other questions on the command line: every option, every refusal, and what is written and shown."""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from engine import AttentionMasker
from engine.commands import main, questions, run
from engine.demo import demo_folder
from engine.questions.question import Choices, ask
from engine.questions.saying import differing, spoken
from engine.tables.effects import EFFECT_COLUMNS
from engine.tables.results import read_provenance, scan_table
from engine.tables.table import IMPACT_COLUMNS

ROOT = Path(__file__).parent.parent
EIFFEL = "The Eiffel Tower is in"
TEMPLATE = """{% for m in messages %}<{{ m.role }}> {{ m.content }} {% endfor %}\
{% if add_generation_prompt %}<assistant>{% endif %}"""


@pytest.fixture(scope="module")
def masker():
    return AttentionMasker.from_pretrained(device="cpu")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def chatty(tmp_path):
    """The embedded model with a chat template."""
    from transformers import AutoTokenizer

    folder = tmp_path / "chatty"
    folder.mkdir()
    for path in demo_folder().iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def ask_program(*words):
    return main(["--prompt", EIFFEL, *words, "--device", "cpu"])


QUESTIONS = [
    ["--read", "output"],
    ["--read", "output", "--cut", "window:3", "--hidden-from", "query"],
    ["--read", "output", "--cut", "all"],
    ["--cut", "all"],
    ["--hidden-from", "others"],
    ["--query", "all"],
    ["--query", "2,4", "--read", "output"],
    ["--intervention", "value-zero"],
    ["--intervention", "value-mean", "--read", "output"],
    ["--heads", "0-1,3"],
    ["--heads", "1:0,2:1-2", "--read", "output", "--cut", "all"],
    ["--mask", "words"],
    ["--mask", "regex:Eiffel Tower|is"],
    ["--mask", "chars:4-15"],
    ["--mask", "positions:1+2,4"],
    ["--mask", "spans:spans.csv"],
    ["--mask", "words", "--skip-special", "--read", "output"],
    ["--sites", "MLP,Resid,Result_h"],
    ["--columns", "attention_mass,relative_l2,token_id,is_special"],
    ["--read", "output", "--columns", "relative_l2,is_special", "--answer", " Paris"],
    ["--read", "output", "--answer", " Paris and London"],
]


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
@pytest.mark.parametrize("words", QUESTIONS, ids=" ".join)
def test_the_table_is_that_of_the_engine(words, suffix, masker, capsys):
    Path("spans.csv").write_text("name,start,end\ntower,4,16\n")
    assert ask_program(*words, "--output", f"table.{suffix}") == 0
    choices = questions.choices_of(run.build_parser().parse_args(["--prompt", EIFFEL, *words]))
    expected = masker.run(EIFFEL, **choices)
    found = scan_table(f"table.{suffix}").collect()
    assert found.columns == expected.columns
    for name, kind in expected.schema.items():
        wanted = expected[name].cast(pl.String) if isinstance(kind, pl.Enum) else expected[name]
        given = found[name].cast(pl.String) if isinstance(kind, pl.Enum) else found[name]
        if kind.is_float():
            np.testing.assert_allclose(given.to_numpy(), wanted.to_numpy(), rtol=2e-3, atol=1e-6)
        else:
            assert given.equals(wanted), name
    said = capsys.readouterr().out
    assert f"{expected.height:,} rows -> table.{suffix}" in said
    assert re.search(r"forward passes the naive way \(.+\)", said)
    assert main(["analyze", f"table.{suffix}"]) == 0
    assert main(["analyze", f"table.{suffix}", "--json"]) == 0
    if suffix == "parquet":
        words = read_provenance("table.parquet")["question"]
        assert ask(words) == ask(choices)
        assert f"Asked   {spoken(words)}"[:60] in capsys.readouterr().out


def test_the_columns_of_each_kind_of_table(capsys):
    assert ask_program("--read", "output", "--output", "a.csv") == 0
    assert ask_program("--query", "all", "--mask", "words", "--columns", "token_id", "--output", "b.csv") == 0
    assert pl.read_csv("a.csv").columns == list(EFFECT_COLUMNS)
    assert pl.read_csv("b.csv").columns == [*IMPACT_COLUMNS, "query_position", "masked_positions", "token_id"]


def test_effects_as_csv_on_stdout():
    command = [sys.executable, str(ROOT / "cli.py"), "--prompt", EIFFEL, "--read", "output", "--output", "-"]
    done = subprocess.run(command, capture_output=True, check=True)
    assert done.stdout.decode().splitlines()[0] == ",".join(EFFECT_COLUMNS)
    assert b"Answer  ' Paris'" in done.stderr


REFUSALS = [
    (["--cut", "layers"], "--cut 'layers' is not known; choose layer, all, or window:K"),
    (["--cut", "window:0"], "--cut 'window:0' is not known"),
    (["--cut", "window:3"], "a window of layers is not read in its layers"),
    (["--hidden-from", "nobody"], "--hidden-from 'nobody' is not known; choose all, others or query"),
    (["--read", "outputs"], "--read 'outputs' is not known; choose layer or output"),
    (["--query", "first"], "--query 'first' is not known; choose last, all, or positions such as 3,5"),
    (["--query", "3-1"], "--query '3-1' is not a list of indices"),
    (["--query", "5"], "there is no query position 5; this run has query positions 0 to 4"),
    (["--intervention", "zero"], "choose mask, value-zero or value-mean"),
    (["--heads", "x"], "--heads 'x' is not a list of indices"),
    (["--heads", "4"], "there is no head 4; this model has heads 0 to 3 in layers 0 to 3"),
    (["--heads", "9:0"], "there is no head 9:0"),
    (["--mask", "word"], "--mask 'word' is not known; choose tokens, words, regex:PATTERN"),
    (["--mask", "regex:"], "--mask 'regex:' is not known"),
    (["--mask", "regex:("], "'(' is no pattern"),
    (["--mask", "regex:Louvre"], "matches nothing"),
    (["--mask", "chars:a"], "--mask chars 'a' is not a list of indices"),
    (["--mask", "positions:1+x"], "--mask positions 'x' is not a list of indices"),
    (["--mask", "spans:none.csv"], "none.csv"),
    (["--mask", "words", "--tokens", "1"], "--tokens chooses among single tokens"),
    (["--mask", "chars:4-9", "--skip-special"], "--skip-special goes with"),
    (["--sites", "Z"], "--sites 'Z' is not known; choose MLP, Resid or Result_h"),
    (["--sites", "MLP", "--read", "output"], "--sites MLP are read in a layer"),
    (["--columns", "mass"], "--columns 'mass' is not known"),
    (["--columns", "attention_mass", "--read", "output"], "attention_mass is a column of --read layer"),
    (["--answer", " Paris"], "--answer is read at the output"),
    (["--answer", "", "--read", "output"], "the answer is empty"),
    (["--answer", " Paris and", "--read", "output", "--query", "all"], "has 2 tokens"),
    (["--cut", "all", "--read", "output", "--layers", "1"], "leave --layers out"),
    (["--system", "Be brief."], "--system is said in a chat; add --chat"),
    (["--chat"], "has no chat template"),
]


@pytest.mark.parametrize(("words", "message"), REFUSALS, ids=[" ".join(words) for words, _ in REFUSALS])
def test_a_mistake_is_one_line_and_nothing_is_written(words, message, capsys, elsewhere):
    assert ask_program(*words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("mask-impact: error: ")
    assert said.err.count("\n") == 1
    assert message in said.err
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("words", [["--cut", "x"], ["--mask", "word"], ["--heads", "a"], ["--system", "x"]])
@pytest.mark.parametrize("source", [["--prompt", "x"], ["--prompts", "none.txt"]])
def test_words_are_read_before_anything_heavy_is_imported(words, source):
    script = (
        "import sys; from engine.commands import main; main(sys.argv[1:]); print({*sys.modules} & {'torch', 'polars'})"
    )
    done = subprocess.run([sys.executable, "-c", script, *source, *words], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "set()\n"
    assert done.stderr.count("\n") == 1


def test_every_word_of_a_question_has_an_option():
    assert {*questions.OPTIONS, *questions.SWITCHES} == set(Choices.__annotations__)
    assert questions.choices_of(argparse.Namespace(**dict.fromkeys(Choices.__annotations__))) == {}


def test_a_chat_on_the_command_line(chatty, capsys):
    words = ["--model", str(chatty), "--chat", "--system", "Say a city.", "--columns", "is_special", "--mask", "words"]
    assert ask_program(*words, "--read", "output", "--output", "chat.parquet") == 0
    said = capsys.readouterr().out
    assert "'<'" in said.splitlines()[1]
    table = scan_table("chat.parquet").collect()
    assert "Tower" in table["token_masked"].to_list()
    assert read_provenance("chat.parquet")["question"]["system"] == "Say a city."


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({}, ""),
        ({"cut": "window:3", "read": "output"}, "--cut window:3 --hidden-from others --read output"),
        ({"heads": "0-1,4:2", "query": "3,5"}, "--query 3,5 --heads 0,1,4:2"),
        ({"mask": [[1, 2], [4]], "sites": "MLP"}, "--mask positions:1+2,4 --sites MLP"),
        ({"chat": True, "system": "Be brief."}, "--chat --system 'Be brief.'"),
    ],
)
def test_a_question_in_words(words, said):
    asked = ask(words).words()
    assert sorted(spoken(asked).split()) == sorted(said.split())
    assert ask(json.loads(json.dumps(asked))).words() == asked
    assert differing(asked, asked) == []


def test_what_differs_is_said_by_the_options():
    assert differing({}, {"cut": "all", "chat": True, "heads": [[None, 1], [2, 3]]}) == [
        ("--cut", "layer", "all"),
        ("--heads", "all", "1,2:3"),
        ("--chat", "not given", "given"),
    ]
