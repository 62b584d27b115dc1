"""The sets suite in small: what counts as arithmetic, the plain forward's batches, processes, and the report."""

import csv
import json
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
import torch

from benchmarks import command_sets, datasets
from benchmarks.__main__ import main
from benchmarks.bars import BARS, DEMO_SET, SHAPE_SET
from benchmarks.batched import BATCH_SIZES, batched_forward, padded_batches, random_prompts, time_batches
from benchmarks.command_sets import CommandRun, demo_texts, run_commands, set_label
from benchmarks.datasets import DatasetRun, disk_of, measure_beside, passes_timed
from benchmarks.set_tables import beside_rows, command_rows, spread_note
from benchmarks.sets import QUICK, Sizes
from benchmarks.workloads import load_workload
from engine import AttentionMasker

pytestmark = pytest.mark.usefixtures("one_thread")


def manifest(prompts: int, *, rows: int, seconds: float) -> dict:
    return {"counts": {"prompts": prompts, "rows": rows}, "times": {"sessions": [{"seconds": seconds}]}}


@pytest.fixture
def no_processes(monkeypatch, tmp_path):
    """Commands that take a second for 100 prompts and a core; their dataset is made here."""

    def run(prompts, output, words, *, cores):
        if not output.exists():
            AttentionMasker.from_pretrained(device="cpu").run_dataset(prompts, output)
        size = len(prompts.read_text().splitlines())
        seconds = size / (50 if cores else 100)
        return CommandRun(
            seconds=seconds + 1,
            peak_bytes=(300 + size) << 20,
            manifest=manifest(size, rows=10 * size, seconds=seconds),
        )

    monkeypatch.setattr(command_sets, "_run", run)


def test_the_report_of_a_quick_run(capsys, tmp_path, no_processes):
    code = main(["--quick", "--suite", "sets", "--repeats", "1", "--output", str(tmp_path)])
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    markdown, table = (Path(name).read_text(encoding="utf-8") for name in summary["files"][:2])
    assert code == 0
    assert summary["missed"] == []  # a quick run is not judged
    rows = {
        (row["workload"], row["provider"], row["metric"]): float(row["median"])
        for row in csv.DictReader(table.splitlines())
    }
    shape, demo = "tiny, 12 prompts of 4 to 16 tokens", set_label(QUICK.large)
    assert rows[shape, "engine", "dataset / batched forward"] > 0
    assert 0 < rows[shape, "engine", "share of the time that is no arithmetic"] < 1
    assert rows[demo, "engine", "rows per second"] == pytest.approx(1000)
    assert rows[demo, "engine", "rows per second, two workers / one"] == pytest.approx(2)
    assert rows[demo, "engine", "peak memory / that of a tenth of the prompts"] == pytest.approx(360 / 306)
    assert "A whole process includes importing torch" in markdown
    assert markdown.count("all of them are in every dataset") == 5


def test_every_bar_names_a_figure_of_the_full_size(tmp_path, no_processes):
    workload = load_workload("tiny", length=4)
    beside = measure_beside(workload, lengths=(4, 6), size=3, rounds=1, folder=tmp_path)
    commanded = run_commands(small=2, large=20, rounds=1, folder=tmp_path)
    of = {SHAPE_SET: {row.metric for row in beside_rows(beside) if row.provider == "engine"}}
    of[DEMO_SET] = {row.metric for row in command_rows(commanded) if row.provider == "engine"}
    assert all(bar.metric in of[bar.workload] for bar in BARS["sets"])
    full = Sizes()
    assert set_label(full.large) == DEMO_SET
    assert SHAPE_SET.endswith(f"{full.prompts} prompts of {full.lengths[0]} to {full.lengths[1]} tokens")


def test_rounds_that_differ_are_named(tmp_path, monkeypatch, no_processes):
    commanded = run_commands(small=2, large=20, rounds=1, folder=tmp_path)
    assert spread_note([], commanded) == []
    slow = replace(commanded.large.runs[0], manifest=manifest(20, rows=200, seconds=0.5))
    large = replace(commanded.large, runs=(commanded.large.runs[0], slow))
    (note,) = spread_note([], replace(commanded, large=large))
    assert f"measure again: {set_label(20)}, command line (" in note


def test_a_prompt_that_is_missing_fails_the_suite(capsys, tmp_path, monkeypatch, no_processes):
    whole = command_sets._run

    def run(*arguments, **named):
        found = whole(*arguments, **named)
        counts = found.manifest["counts"] | {"prompts": found.finished - 1}
        return CommandRun(seconds=1.0, peak_bytes=1, manifest=found.manifest | {"counts": counts})

    monkeypatch.setattr(command_sets, "_run", run)
    assert main(["--quick", "--suite", "sets", "--repeats", "1", "--output", str(tmp_path)]) == 1
    assert "FAILS: demo" in capsys.readouterr().out


def test_passes_are_timed_and_only_in_the_block():
    masker = AttentionMasker(load_workload("tiny", length=4).model)
    plain = datasets.passes.measure_readouts
    with passes_timed() as seconds:
        masker.run([1, 2, 3])
        masker.run([1, 2, 3])
    assert len(seconds) == 2
    assert min(seconds) > 0
    assert datasets.passes.measure_readouts is plain


def test_shares_of_a_run():
    run = DatasetRun(seconds=10.0, arithmetic_s=6.0, manifest=manifest(1, rows=1, seconds=8.0))
    assert run.share == pytest.approx(0.4)
    assert run.session_share == pytest.approx(0.25)


def test_batches_hold_every_token_of_sorted_prompts_and_padding_changes_nothing():
    workload = load_workload("tiny", length=4)
    prompts = random_prompts(9, (2, 7), vocab_size=256)
    assert prompts == random_prompts(9, (2, 7), vocab_size=256)
    assert {len(prompt) for prompt in prompts} <= set(range(2, 8))
    batches = padded_batches(prompts, 4)
    assert [ids.shape[0] for ids, _ in batches] == [4, 4, 1]
    found = [ids[mask.bool()].tolist() for ids, mask in batches]
    assert list(chain.from_iterable(found)) == [token for prompt in sorted(prompts, key=len) for token in prompt]
    ids, mask = batches[0]
    length = int(mask[0].sum())
    with torch.inference_mode():
        padded = workload.model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        alone = workload.model.base_model(input_ids=ids[:1, :length], use_cache=False).last_hidden_state
    torch.testing.assert_close(padded[:1, :length], alone, rtol=1e-4, atol=1e-4)
    batched_forward(workload.model, batches)()
    assert set(time_batches(workload.model, prompts)) == set(BATCH_SIZES)


def test_texts_have_the_tokens_that_they_should():
    texts = demo_texts(50)
    assert texts == demo_texts(50)
    tokenizer = AttentionMasker.from_pretrained(device="cpu").tokenizer
    assert all(5 <= len(ids) <= 20 for ids in tokenizer(texts)["input_ids"])
    assert not any("\n" in text for text in texts)


def test_coordinates_are_a_part_of_what_a_table_takes(tmp_path):
    AttentionMasker.from_pretrained(device="cpu").run_dataset(["The sky is", "Paris is in France"], tmp_path / "set")
    disk = disk_of(tmp_path / "set")
    assert 0 < disk.coordinate_bytes_per_row < disk.bytes_per_row
    assert disk.total_bytes == sum(path.stat().st_size for path in (tmp_path / "set" / "impacts").iterdir())


@pytest.mark.parametrize("cores", [None, 1])
def test_a_command_runs_in_a_process_of_its_own(tmp_path, cores):
    prompts = tmp_path / "two.txt"
    prompts.write_text("The sky is blue\nParis is in France\n")
    run = command_sets._run(prompts, tmp_path / "set", [], cores=cores)
    assert run.finished == 2
    assert run.seconds > run.session_s > 0
    assert 2**27 < run.peak_bytes < 2**31
