"""The shipped demo model: its facts and phrasings, its recall, its files; and that it can be made again."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.demo import demo_folder
from engine.demo.evaluate import all_cases, load_demo, probability, wrong_cases
from engine.demo.facts import load_facts
from engine.demo.phrasings import SHARED_KINDS, load_phrasings
from engine.demo.train import make_demo

STRIDES = {"trained": 11, "recombined": 3, "held out": 1, "held out +": 1}  # `engine.demo.evaluate` measures them all
LEAST_RECALL = {"trained": 0.99, "recombined": 0.99, "held out": 0.90, "held out +": 0.90}


@pytest.fixture(scope="module")
def demo():
    return load_demo(demo_folder())


def test_facts_are_many_and_unique() -> None:
    facts = load_facts()
    assert len(facts) >= 250
    assert len({fact.kind for fact in facts}) >= 5
    assert max(Counter((fact.kind, fact.subject) for fact in facts).values()) == 1
    assert all(text == text.strip() and text for fact in facts for text in (fact.subject, fact.answer))


def test_every_kind_has_trained_and_held_out_phrasings() -> None:
    table = load_phrasings()
    assert {fact.kind for fact in load_facts()} == table.keys() - set(SHARED_KINDS)
    for kind, phrasings in table.items():
        assert len(phrasings.trained) >= 8, kind
        assert len(phrasings.held_out) >= 3, kind
        assert not set(phrasings.trained) & set(phrasings.held_out), kind


def test_phrasings_name_the_subject_once() -> None:
    for kind, phrasings in load_phrasings().items():
        expected = 0 if kind in SHARED_KINDS else 1
        assert all(text.count("{s}") == expected for text in phrasings.trained + phrasings.held_out), kind


def test_no_held_out_prompt_is_trained() -> None:
    cases = all_cases()
    trained = {case.prompt for case in cases["trained"]}
    for name in ("recombined", "held out", "held out +"):
        assert not trained & {case.prompt for case in cases[name]}, name


@pytest.mark.parametrize("name", STRIDES)
def test_recall(demo, name: str) -> None:
    cases = all_cases()[name][:: STRIDES[name]]
    assert 1 - len(wrong_cases(*demo, cases)) / len(cases) >= LEAST_RECALL[name]


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("The Eiffel Tower is in", " Paris"),
        ("The capital of France is", " Paris"),
        ("The Colosseum is in", " Rome"),
        ("The chemical symbol for gold is", " Au"),
    ],
)
def test_famous_prompts_have_a_sure_answer(demo, prompt: str, answer: str) -> None:
    assert probability(*demo, prompt, answer) > 0.9


def test_famous_prompt_reads_well_as_tokens(demo) -> None:
    assert demo[1].tokenize("The Eiffel Tower is in") == ["The", "ĠEiffel", "ĠTower", "Ġis", "Ġin"]


def test_evaluation_agrees_with_greedy_generation(demo) -> None:
    model, tokenizer = demo
    for case in all_cases()["held out"][::97]:
        prompt, answer = (tokenizer(text, return_tensors="pt")["input_ids"] for text in (case.prompt, case.answer))
        found = model.generate(prompt, max_new_tokens=answer.shape[1], do_sample=False)[0, prompt.shape[1] :]
        assert (found.tolist() == answer[0].tolist()) == (not wrong_cases(*demo, [case]))


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "  two  spaces ",
        "\n\t\r\n",
        "naïve café – “Güell”",
        "東京タワーは",
        "Москва",
        "العربية",
        "हिन्दी",
        "\U0001f469\u200d\U0001f467 \U0001f1eb\U0001f1f7",
        "e\u0301 \u00e9",
        "\u200b\ufeff\x00\x7f",
        "𝕏 \U0010ffff",
        "<|endoftext",
        "it's don't I'LL",
    ],
)
def test_tokenizer_writes_and_reads_any_text(demo, text: str) -> None:
    tokenizer = demo[1]
    assert tokenizer.is_fast
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_tokenizer_knows_every_byte_and_no_unknown_token(demo) -> None:
    tokenizer = demo[1]
    content = json.loads((demo_folder() / "tokenizer.json").read_text(encoding="utf-8"))
    assert sum(len(token) == 1 for token in content["model"]["vocab"]) == 256
    assert content["model"]["unk_token"] is None
    assert tokenizer.unk_token is None


def test_folder_is_small_and_holds_a_bfloat16_qwen3() -> None:
    folder = demo_folder()
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 3_000_000
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["max_position_embeddings"] >= 2048
    with safe_open(folder / "model.safetensors", framework="pt") as tensors:
        assert {tensors.get_slice(name).get_dtype() for name in tensors.keys()} == {"BF16"}  # noqa: SIM118


def test_loads_without_missing_or_unexpected_weights() -> None:
    _, info = AutoModelForCausalLM.from_pretrained(demo_folder(), output_loading_info=True)
    assert not any(info.values())


def test_training_writes_a_loadable_folder_and_replaces_the_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "stale").touch()
    threads = torch.get_num_threads()
    try:
        report = make_demo(folder, seed=1, steps=2, cases={"held out": all_cases()["held out"][:20]})
    finally:
        torch.set_num_threads(threads)
    assert "recall, held out:" in report
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.bfloat16
    assert AutoTokenizer.from_pretrained(folder).is_fast
