"""What the terminal shows of other questions, and what the naive way to them costs."""

import re

import numpy as np
import pytest

from engine import AttentionMasker
from engine.findings.terminal import width
from engine.questions.question import ask
from engine.summaries.naive import naive_passes
from engine.summary import summarize

EIFFEL = "The Eiffel Tower is in"


@pytest.fixture(scope="module")
def masker():
    return AttentionMasker.from_pretrained(device="cpu")


def shown(masker, prompt=EIFFEL, **words):
    return summarize(masker.measure(prompt, next_tokens=5, **words), ask(words))


def test_an_effect_shows_the_answer_the_grid_and_the_strongest(masker):
    text = shown(masker, read="output", cut="window:3", hidden_from="query")
    lines = text.splitlines()
    assert lines[0].startswith("Prompt  0 'The'  1 ' Eiffel'")
    assert lines[1].startswith("Next    ' Paris' 0.9")
    assert re.fullmatch(r"Answer  ' Paris' 0\.9\d\d \(log-probability -0\.0\d+\)", lines[2])
    assert "when a token is masked for the query alone in the 3 layers around each (nats)" in lines[4]
    assert [line.split()[0] for line in lines[7:11]] == ["0", "1", "2", "3"]
    strongest = lines[lines.index(next(line for line in lines if line.startswith("Strongest"))) + 1]
    assert re.search(r"1 ' Eiffel' +-\d\.\d{4} +\d\.\d+ +' \w+'$", strongest)


def test_an_effect_of_all_layers_has_one_row(masker):
    lines = shown(masker, read="output", cut="all").splitlines()
    assert sum(line.strip().startswith("all ") for line in lines[:9]) == 1


def test_a_chosen_answer_is_told_with_its_own_probability(masker):
    text = shown(masker, read="output", answer=" London")
    assert "Answer  ' London' 0.0" in text
    assert "Next    ' Paris' 0.9" in text


@pytest.mark.parametrize("read", ["layer", "output"])
def test_of_several_queries_the_last_is_shown(masker, read):
    every = shown(masker, read=read, query="all").splitlines()
    assert (
        "Query   4 ' in' (what follows is read here; the last of 5 that were asked, which are all in the table)"
        in every
    )
    last = shown(masker, read=read).splitlines()
    assert [line for line in every if not line.startswith("Query")] == last
    assert "Query   2 ' Tower' (what follows is read here)" in shown(masker, read=read, query="2")


@pytest.mark.parametrize("read", ["layer", "output"])
def test_groups_are_named(masker, read):
    text = shown(masker, read=read, mask="regex:Eiffel Tower|is")
    assert "1+2 'Eiffel Tower'" in text
    assert "groups" in text or read == "output"


@pytest.mark.parametrize("words", [{}, {"read": "output"}, {"query": "all"}, {"query": "all", "read": "output"}])
def test_many_and_long_groups_fit_a_terminal(masker, words):
    prompt = "The capital of France is Paris and the river is in France and " * 4
    groups = [[first, *range(first + 2, 50)] for first in range(30)]
    lines = shown(masker, prompt, mask=groups, **words).splitlines()
    assert "(layer x token grid left out: it holds 12 groups)" in lines
    assert max(map(width, lines[1:])) <= 120
    assert len(lines) < 30


def test_undefined_effects_are_dashes(masker):
    found = masker.measure(EIFFEL, read="output")
    for name in ("answer_logprob_change", "kl_divergence"):
        found.numbers[name][:, 0] = np.nan
    text = summarize(found, ask({"read": "output"}))
    assert re.search(r"^ +0 +- +", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "count", "reason"),
    [
        ({}, 24, "layers x (masked tokens + 1): 4 x (5 + 1)"),
        ({"query": "all"}, 24, "layers x (masked tokens + 1): 4 x (5 + 1)"),
        ({"mask": "positions:1+2,4"}, 12, "layers x (groups + 1): 4 x (2 + 1)"),
        ({"cut": "all"}, 6, "masked tokens + 1: 5 + 1"),
        ({"read": "output"}, 21, "windows of layers x masked tokens + 1: 4 x 5 + 1"),
        ({"read": "output", "layers": [1, 2], "tokens": [3]}, 3, "windows of layers x masked tokens + 1: 2 x 1 + 1"),
        ({"read": "output", "cut": "all"}, 6, "masked tokens + 1: 5 + 1"),
        ({"read": "output", "cut": "window:9"}, 6, "masked tokens + 1: 5 + 1"),
        ({"read": "output", "query": "all"}, 21, "windows of layers x masked tokens + 1: 4 x 5 + 1"),
        (
            {"read": "output", "query": "all", "hidden_from": "query"},
            61,
            "windows of layers x pairs of masked tokens and queries + 1: 4 x 15 + 1",
        ),
    ],
    ids=str,
)
def test_what_the_naive_way_costs(masker, words, count, reason):
    choices = {name: word for name, word in words.items() if name not in ("layers", "tokens")}
    naive = naive_passes(masker.measure(EIFFEL, **words), ask(choices), num_layers=4)
    assert (naive.count, naive.reason) == (count, reason)
