"""Every question of the engine beside its slow twin, which makes a forward of its own for every row."""

from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
from comparing import FLOAT32, assert_same
from naive_questions import SIZE, naive_answer
from tiny import CASES, build, token_ids
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.oracle import float64_model
from engine import AttentionMasker
from engine.demo import demo_folder

LENGTH = 8
MODELS = [
    *("qwen3", "qwen3-mqa", "qwen3-window", "qwen3-bias", "qwen2", "qwen2-window", "llama-bias", "mistral-window"),
    *("mistral-window-1", "qwen3-one-layer", "llama-3"),
]
PLACES = [
    *(("layer", "layer"), ("all", "layer"), ("layer", "output"), ("window:1", "output"), ("window:2", "output")),
    *(("window:3", "output"), ("all", "output")),
]
WHOM = ("all", "others", "query")
INTERVENTIONS = ("mask", "value-zero", "value-mean")
QUERIES: tuple[Any, ...] = ("last", [0, 3, 5], "all")
REFINED: list[dict[str, Any]] = [
    {},
    {"heads": [0, 2]},
    {"heads": [(0, 1), (0, 3)]},
    {"mask": [[1, 2], [4]]},
    {"tokens": [0, 3]},
    {"layers": [0]},
    {"mask": [[0, 1, 2, 3, 4, 5]], "heads": [1]},
]
SITES, LOCAL = ["MLP", "Resid", "Result_h"], ["attention_mass", "relative_l2", "token_id"]

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True)
class Question:
    """A model, and the words of a question to it."""

    model: str
    words: dict[str, Any]

    def __str__(self) -> str:
        return "-".join([self.model, *(f"{key}={value}".replace(" ", "") for key, value in self.words.items())])


def questions() -> list[Question]:
    """All combinations of the independent choices; models and refinements take turns, at strides that never meet."""
    found = []
    for number, ((cut, read), hidden_from, intervention, query) in enumerate(
        product(PLACES, WHOM, INTERVENTIONS, QUERIES)
    ):
        words = {"cut": cut, "read": read, "hidden_from": hidden_from, "intervention": intervention, "query": query}
        words |= REFINED[number % len(REFINED)]
        if (cut, read) == ("all", "output"):
            words.pop("layers", None)
        if read == "layer" and number % 2:
            words |= {"sites": SITES, "columns": LOCAL if cut == "layer" else LOCAL[1:]}
        if read == "output" and number % 2:
            words["columns"] = LOCAL[1:]
            words["answer"] = [11] if query != "last" else [11, 60, 3]
        found.append(Question(MODELS[number % len(MODELS)], words))
    return found


@cache
def wide(name: str) -> tuple[Any, list[int]]:
    """A tiny model in float64, and a prompt that is longer than its window where it has one."""
    case = next(case for case in CASES if case.name == name)
    model = float64_model(build(case))
    return model, (token_ids(case) * LENGTH)[:LENGTH]


@pytest.mark.parametrize("question", questions(), ids=str)
def test_every_combination(question):
    model, ids = wide(question.model)
    assert_same(AttentionMasker(model).run(ids, **question.words), naive_answer(model, ids, **question.words))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "words",
    [
        {"cut": "window:1", "hidden_from": "query", "read": "output"},
        {"cut": "window:3", "hidden_from": "query", "read": "output", "answer": [5, 9]},
        {"cut": "all", "hidden_from": "others", "read": "output", "answer": [5, 9, 60, 2]},
        {"cut": "all", "hidden_from": "others", "read": "layer", "sites": SITES},
        {"query": "all", "sites": SITES, "columns": LOCAL},
        {"query": "all", "intervention": "value-zero", "sites": ["Resid"]},
    ],
    ids=lambda words: "-".join(f"{key}={value}".replace(" ", "") for key, value in words.items()),
)
def test_the_main_questions_on_every_model(name, words):
    model, ids = wide(name)
    assert_same(AttentionMasker(model).run(ids, **words), naive_answer(model, ids, **words))


@pytest.mark.parametrize("words", [{}, {"read": "output"}, {"cut": "all"}, {"cut": "all", "read": "output"}], ids=str)
def test_defaults(words):
    """Hidden from all in the local table, and from others as soon as an effect travels."""
    model, ids = wide("qwen3")
    assert_same(AttentionMasker(model).run(ids, **words), naive_answer(model, ids, **words))


@pytest.mark.parametrize("read", ["layer", "output"])
@pytest.mark.parametrize("hidden_from", WHOM)
def test_prompts_of_different_lengths_share_a_run(hidden_from, read):
    model, ids = wide("qwen3-window")
    prompts = {"long": ids, "short": ids[:3], "other": ids[::-1][:6], "two": ids[4:6]}
    words = {"cut": "all" if read == "layer" else "window:2", "hidden_from": hidden_from, "read": read, "query": "all"}
    tables = dict(AttentionMasker(model).run_many(prompts, **words))
    assert list(tables) == list(prompts)
    for prompt_id, prompt in prompts.items():
        assert_same(tables[prompt_id], naive_answer(model, prompt, **words))


@cache
def embedded() -> tuple[Any, Any, Any]:
    """The embedded model in float32 and float64, and its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(demo_folder(), dtype=torch.float32).eval()
    return model, float64_model(model), AutoTokenizer.from_pretrained(demo_folder())


FACTS = [("The Eiffel Tower is in", " Paris"), ("The capital of France is", " Paris"), ("Hamlet was written by", None)]


@pytest.mark.parametrize(("cut", "read"), PLACES)
@pytest.mark.parametrize("hidden_from", WHOM)
@pytest.mark.parametrize("intervention", INTERVENTIONS)
@pytest.mark.parametrize("query", ["last", "all"])
def test_float32_on_the_embedded_model(cut, read, hidden_from, intervention, query):
    model, truth, tokenizer = embedded()
    words = {"cut": cut, "read": read, "hidden_from": hidden_from, "intervention": intervention, "query": query}
    masker = AttentionMasker(model, tokenizer)
    for text, answer in FACTS:
        ids = tokenizer(text)["input_ids"]
        asked = {"answer": tokenizer(answer)["input_ids"]} if answer and read == "output" and query == "last" else {}
        theirs = naive_answer(truth, ids, text=lambda token: tokenizer.decode([token]), **words, **asked)
        ours = masker.run(text, **words, **({"answer": answer} if asked else {}))
        assert_same(ours, theirs, FLOAT32)


def test_labels_of_tokens_and_spans():
    model, truth, tokenizer = embedded()
    text, columns = "The Eiffel Tower is in", ["token_id", "is_special"]
    end = tokenizer.eos_token_id
    ids = [*tokenizer(text)["input_ids"], end]
    masker = AttentionMasker(model, tokenizer)
    pieces = {"text": lambda token: tokenizer.decode([token]), "special": tokenizer.all_special_ids}
    ours = masker.run(ids, columns=columns)
    theirs = naive_answer(truth, ids, columns=columns, **pieces)
    assert ours["is_special"].to_list() == [row == len(ids) - 1 for row in ours["token_position"]]
    assert_same(ours, theirs, FLOAT32)
    spans = {"mask": [[1, 2], [4]], "cut": "window:2", "read": "output", "hidden_from": "others"}
    assert_same(masker.run(text, **spans), naive_answer(truth, ids[:-1], **spans, **pieces), FLOAT32)


def test_the_twin_can_tell():
    """A table that is off by little in one cell is not the twin's."""
    model, ids = wide("qwen3")
    table = naive_answer(model, ids, cut="window:1", read="output", hidden_from="query")
    same = table.drop(SIZE)
    assert_same(same, table)
    for name in ("l2_distance", "kl_divergence", "answer_logprob_change"):
        with pytest.raises(AssertionError, match=name):
            assert_same(same.with_columns(same[name] * (1 + 1e-5)), table)
