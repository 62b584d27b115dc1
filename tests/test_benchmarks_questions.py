"""The questions suite in small: its report, what it times beside the engine, checks, costs, and the map of facts."""

import json
from pathlib import Path

import polars as pl
import pytest
import torch
from naive_questions import naive_answer
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks import answers, facts_map, questions, trials
from benchmarks.__main__ import main
from benchmarks.answers import check_answers
from benchmarks.bars import BARS, SHAPE
from benchmarks.cost import forward_cost, head_cost, knockout_rows_cost
from benchmarks.masked_pass import causal_mask, masked_copies, masked_pass
from benchmarks.measure import Timing
from benchmarks.trials import COPIES, KNOCKOUT, NAIVE, QUERIES, TRIALS, Timed
from benchmarks.workloads import SHAPES, demo_model, load_workload
from engine import AttentionMasker

pytestmark = pytest.mark.usefixtures("one_thread")


class SlowMasker:
    """Answers as the slow twin does."""

    def __init__(self, model, tokenizer=None):
        self.model, self.tokenizer = model, tokenizer

    def run(self, prompt, *, answer=None, **words):
        extra = {}
        if answer is not None:
            extra["answer"] = self.tokenizer(answer)["input_ids"]
        ids = self.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
        return naive_answer(self.model, ids, **words, **extra)


def assert_report(capsys, folder: Path) -> None:
    """The suite in small, in a folder; whatever answers the questions."""
    code = main(["--quick", "--repeats", "1", "--suite", "questions", "--length", "5", "--output", str(folder)])
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    markdown = Path(summary["files"][0]).read_text(encoding="utf-8")
    assert code == 0, markdown
    assert list(summary["figures"]["questions"]) == [
        "tiny, 5 tokens: engine, knockout / plain forward with logits",
        "tiny, 5 tokens: engine, knockout / plain forward, logits of the final position",
        "tiny, 5 tokens: naive / engine, all queries",
        "tiny, 5 tokens: engine, everywhere, output / masked copies with logits",
        "tiny, 5 tokens: engine, everywhere, layers / masked copies",
    ]
    assert "knockout takes 3 x 5 + 1 = 16 forwards with logits the naive way" in markdown
    assert "all queries take 3 x (5 + 1) = 18 forwards the naive way; 6 timed and extrapolated by 3" in markdown
    assert markdown.count("- holds: tiny, 5 tokens, ") == 7


def test_report(capsys, tmp_path):
    assert_report(capsys, tmp_path)


def test_report_on_the_slow_twin(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(questions, "AttentionMasker", SlowMasker)
    assert_report(capsys, tmp_path)


@pytest.mark.parametrize("trial", TRIALS, ids=lambda trial: trial.name)
def test_a_wrong_answer_fails_its_check(trial):
    workload = load_workload("tiny", length=5)
    wrong = {name: pl.col(name) * 1.1 for name in ("l2_distance", "kl_divergence", "answer_logprob_change")}

    class Wrong(SlowMasker):
        def run(self, prompt, **words):
            table = super().run(prompt, **words)
            return table.with_columns(**{name: value for name, value in wrong.items() if name in table.columns})

    assert all(check_answers(trial, workload, SlowMasker(workload.model)).values())
    assert not any(check_answers(trial, workload, Wrong(workload.model)).values())


def test_every_bar_is_a_ratio_that_is_measured():
    measured = set()
    for trial in TRIALS:
        timings = {name: Timing((1.0,)) for name in (trial.provider, trial.rival, *trial.beside)}
        timed = Timed(trial=trial, workload=load_workload("tiny", length=4), timings=timings, num_passes=6)
        measured |= {(name, length) for name in timed.ratios for length in trial.lengths}
    assert {(bar.metric, bar.x) for bar in BARS["questions"]} <= measured
    assert {bar.workload for bar in BARS["questions"]} == {SHAPE}


def test_ratios_are_the_engines_time_over_the_others_and_the_naive_ones_over_the_engines():
    workload = load_workload("tiny", length=4)
    by_name = {trial.name: trial for trial in TRIALS}
    for name, rival, expected in ((KNOCKOUT, COPIES, 0.25), (QUERIES, NAIVE, 4.0)):
        timings = {by_name[name].provider: Timing((1.0,)), rival: Timing((4.0,))}
        timed = Timed(trial=by_name[name], workload=workload, timings=timings, num_passes=6)
        assert list(timed.ratios.values()) == [expected]


def test_a_pass_without_a_cut_is_the_model_and_hooks_go():
    workload = load_workload("tiny", length=6)
    shown = masked_pass(workload.model, workload.token_ids)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in workload.model.modules())
    with torch.inference_mode():
        theirs = workload.model(torch.tensor([workload.token_ids]), output_hidden_states=True)
    torch.testing.assert_close(shown.log_probs, theirs.logits[0, -1].double().log_softmax(-1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(shown.updates[0], (theirs.hidden_states[1] - theirs.hidden_states[0])[0, -1])


def test_copies_are_the_passes_of_every_token():
    workload = load_workload("tiny", length=5)
    found = masked_copies(workload, logits=True)().logits[:, -1].double().log_softmax(-1)
    base = masked_copies(workload, logits=False)().last_hidden_state
    assert found.shape[0] == base.shape[0] == 6
    for token in range(5):
        edges = [(query, token) for query in range(5) if query != token]
        expected = masked_pass(workload.model, workload.token_ids, layers=range(3), hidden=edges).log_probs
        torch.testing.assert_close(found[token + 1], expected, rtol=1e-4, atol=1e-4)
    plain = masked_pass(workload.model, workload.token_ids).log_probs
    torch.testing.assert_close(found[0], plain, rtol=1e-4, atol=1e-4)
    assert causal_mask(3, hidden=[(2, 0)], like=plain).isinf().int().tolist() == [[0, 1, 1], [0, 0, 1], [1, 0, 0]]


def test_costs_of_a_knockout():
    with torch.device("meta"):
        model = Qwen3ForCausalLM(Qwen3Config(**vars(SHAPES[SHAPE]), tie_word_embeddings=True))
    layer = forward_cost(model, length=1).flop // 28
    qkv = 2 * (1024 * 2048 + 2 * 1024 * 1024)
    assert knockout_rows_cost(model, num_tokens=7).flop == 7 * (28 * 29 // 2 * layer - 28 * qkv)
    assert head_cost(model, rows=197).flop == 2 * 197 * 1024 * 151936


def test_the_sample_of_a_question():
    assert [answers.some(count) for count in (1, 2, 3, 28)] == [[0], [0, 1], [0, 1, 2], [0, 14, 27]]
    assert trials.EVERYWHERE == {"cut": "all", "hidden_from": "others"}


def embedded() -> AttentionMasker:
    return AttentionMasker.from_pretrained(device="cpu")


def test_roles_of_tokens():
    tokenizer = embedded().tokenizer
    first, second, *_ = facts_map.sentences(12)
    assert (first.text, first.answer) == ("The Eiffel Tower is in", " Paris")
    assert facts_map.roles(first, tokenizer) == ["subject", "subject", "subject", "relation", "last"]
    words = dict(zip(tokenizer.tokenize(second.text), facts_map.roles(second, tokenizer), strict=True))
    assert set(words.values()) == {"subject", "relation", "last"}
    assert len({sentence.text for sentence in facts_map.sentences(12)}) == 12


def test_the_model_knows_the_facts_of_the_map():
    masker, model = embedded(), demo_model()
    for sentence in facts_map.sentences(12):
        ids = masker.tokenizer(sentence.text)["input_ids"]
        with torch.inference_mode():
            top = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        assert masker.tokenizer(sentence.answer)["input_ids"][0] == top, sentence.text


def test_the_map_averages_by_role():
    masker, model = embedded(), demo_model()
    slow = SlowMasker(model, masker.tokenizer)
    (sentence,) = facts_map.sentences(1)
    words = {"cut": "window:1", "hidden_from": "query", "read": "output", "answer": sentence.answer}
    table = slow.run(sentence.text, **words)
    means = facts_map.changes(slow, [sentence], window=1)
    cell = means.filter((pl.col("layer") == 1) & (pl.col("role") == "subject"))["answer_logprob_change"].item()
    rows = table.filter((pl.col("layer") == 1) & (pl.col("token_position") < 3))
    assert cell == pytest.approx(rows["answer_logprob_change"].mean())
    lines = facts_map.as_text(means).splitlines()
    assert lines[0] == "layer  subject tokens  relation tokens  last token"
    assert len(lines) == 1 + model.config.num_hidden_layers
