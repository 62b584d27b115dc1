"""Many prompts in one go: what each gives alone, in the order in which they came, whatever company they keep."""

from itertools import count, islice

import numpy as np
import pytest
import torch
from tiny import CASES, VOCAB, build
from tokenizers_for_tests import byte_level

from engine import AttentionMasker
from engine.errors import ModelError, NumbersError, OutOfMemoryError, PromptError, SelectionError
from engine.runs.jobs import Task
from engine.runs.many import FIRST_AHEAD
from engine.runs.schedule import Schedule

BY_NAME = {case.name: case for case in CASES}
NAMES = ["qwen3", "qwen3-window", "qwen2", "llama-bias", "mistral-window", "llama-dynamic", "llama-longrope"]


def drawn(lengths, seed=0):
    random = np.random.default_rng(seed)
    return [random.integers(VOCAB, size=length).tolist() for length in lengths]


def masker_of(name, dtype=torch.float64):
    return AttentionMasker(build(BY_NAME[name], dtype=dtype))


@pytest.mark.parametrize("name", [name for name in NAMES if name in BY_NAME])
def test_every_prompt_gives_what_it_gives_alone(name):
    masker = masker_of(name)
    prompts = drawn([9, 2, 30, 9, 3, 17, 41, 9, 2, 5])
    found = list(masker.measure_many(prompts))
    assert [prompt_id for prompt_id, _ in found] == list(range(len(prompts)))
    for prompt, (_, impact) in zip(prompts, found, strict=True):
        alone = masker.measure(prompt)
        assert impact.prompt == alone.prompt
        np.testing.assert_allclose(impact.distances, alone.distances, rtol=1e-9, atol=1e-15)


def test_tables_come_by_id_with_chosen_layers_and_tokens():
    masker = masker_of("qwen3")
    prompts = dict(zip("cab", drawn([6, 4, 8]), strict=True))
    found = dict(masker.run_many(prompts, layers=[2], tokens=[0, 3]))
    assert list(found) == ["c", "a", "b"]
    for prompt_id, table in found.items():
        assert table.equals(masker.run(prompts[prompt_id], layers=[2], tokens=[0, 3]), null_equal=True) or np.allclose(
            table["l2_distance"], masker.run(prompts[prompt_id], layers=[2], tokens=[0, 3])["l2_distance"]
        )


def test_prompts_are_read_as_they_are_needed():
    """An endless iterable gives its first tables."""
    masker = masker_of("qwen3", torch.float32)
    read = []

    def endless():
        for number in count():
            read.append(number)
            yield [number % VOCAB, 1, 2]

    assert [prompt_id for prompt_id, _ in islice(masker.run_many(endless()), 3)] == [0, 1, 2]
    assert len(read) == FIRST_AHEAD


def test_bad_prompts_are_handed_back_and_stop_nothing():
    masker = AttentionMasker(build(BY_NAME["qwen3"]), byte_level())
    prompts = ["good text", "", "x", [1, 2, VOCAB + 7], 3.5, "more good text"]
    rejected = {}
    found = [prompt_id for prompt_id, _ in masker.run_many(prompts, rejected=rejected.__setitem__)]
    assert found == [0, 5]
    assert list(rejected) == [1, 2, 3, 4]
    assert all(isinstance(error, PromptError) for error in rejected.values())
    with pytest.raises(PromptError, match="prompt 1: the prompt is empty"):
        list(masker.run_many(prompts))


def test_a_prompt_whose_numbers_break_is_found_among_its_company():
    model = build(BY_NAME["qwen3"])
    with torch.no_grad():
        model.model.embed_tokens.weight[5] = torch.inf
    masker = AttentionMasker(model)
    rejected = {}
    prompts = [[1, 2, 3], [1, 5, 3], [4, 2, 1], [1, 2, 5]]
    assert [prompt_id for prompt_id, _ in masker.run_many(prompts, rejected=rejected.__setitem__)] == [0, 2]
    assert {key: type(error) for key, error in rejected.items()} == {1: NumbersError, 3: NumbersError}


def test_out_of_memory_halves_the_batches_for_good(monkeypatch):
    masker = masker_of("qwen3")
    prompts = drawn([7] * 20)
    alone = [impact.distances for _, impact in masker.measure_many(prompts)]
    sizes = []
    measure = masker._measuring.measure

    def cramped(jobs, *args, **kwargs):
        sizes.append(len(jobs))
        if len(jobs) > 3:
            raise OutOfMemoryError("the device ran out of memory")
        return measure(jobs, *args, **kwargs)

    monkeypatch.setattr(masker._measuring, "measure", cramped)
    found = [impact.distances for _, impact in masker.measure_many(prompts)]
    np.testing.assert_allclose(found, alone, rtol=1e-9, atol=1e-15)
    assert max(sizes) == FIRST_AHEAD


def test_a_prompt_that_does_not_fit_is_handed_back_and_stops_nothing(monkeypatch):
    masker = masker_of("qwen3")
    measure = masker._measuring.measure

    def cramped(jobs, *args, **kwargs):
        if any(len(job.prompt) > 20 for job in jobs):
            raise OutOfMemoryError("the device ran out of memory")
        return measure(jobs, *args, **kwargs)

    monkeypatch.setattr(masker._measuring, "measure", cramped)
    rejected = {}
    found = [key for key, _ in masker.run_many(drawn([5, 30, 6, 7]), rejected=rejected.__setitem__)]
    assert (found, list(rejected)) == ([0, 2, 3], [1])
    with pytest.raises(OutOfMemoryError, match="prompt 1"):
        list(masker.run_many(drawn([5, 30, 6, 7])))


def test_what_came_before_an_error_is_not_lost():
    masker = masker_of("qwen3", torch.float32)

    def failing():
        yield from drawn([4] * 20)
        raise RuntimeError("the source broke")

    for prompts, error in (([*drawn([4] * 20), []], PromptError), (failing(), RuntimeError)):
        found = []
        with pytest.raises(error):
            found.extend(key for key, _ in iter_into(masker.run_many(prompts), found))
        assert found == list(range(20))


def iter_into(pairs, found):
    """Note every id as it comes; the error at the end keeps them."""
    for key, _ in pairs:
        found.append(key)
    return []


@pytest.mark.parametrize("prompts", ["one text", None, 3])
def test_what_is_no_set_of_prompts_is_refused_at_once(prompts):
    with pytest.raises(PromptError, match="many prompts are a list"):
        masker_of("qwen3").run_many(prompts)
    with pytest.raises(SelectionError):
        masker_of("qwen3").run_many([[1, 2]], layers=[99])


@pytest.mark.parametrize("model", ["gpt2", None, 3])
def test_what_is_no_model_is_refused(model):
    with pytest.raises(ModelError, match="takes a loaded transformers model"):
        AttentionMasker(model)


def test_batches_keep_to_the_budget_and_hold_every_job_once():
    masker = masker_of("qwen3")
    jobs = dict(enumerate(masker._measuring.preparing(Task((0,))).jobs(drawn(range(2, 40)))))
    schedule = Schedule(masker.decoder)
    schedule.rows = 50
    batches = list(schedule.batches(jobs))
    assert sorted(key for batch in batches for key in batch) == sorted(jobs)
    rows = [sum(jobs[key].num_rows for key in batch) for batch in batches]
    assert all(total <= 50 or len(batch) == 1 for total, batch in zip(rows, batches, strict=True))
    assert jobs[batches[0][0]].num_rows == max(job.num_rows for job in jobs.values())
