"""The benchmarks run in small and say what they should: files, checks, order of timing, errors and costs."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks import accuracy
from benchmarks.__main__ import main
from benchmarks.compare import Tolerance, agreement, quantiles, relative_errors
from benchmarks.cost import forward_cost, table_cost
from benchmarks.machine import Ceilings, describe_machine
from benchmarks.measure import MOST_IN_A_ROUND, Timing, time_interleaved
from benchmarks.report import COLUMNS, Table, _grid
from benchmarks.workloads import SHAPES, load_workload, random_model, random_prompt

TOLERANCE = Tolerance(floor=0.1, rtol=0.01, why="made up")


pytestmark = pytest.mark.usefixtures("one_thread")


def run(capsys, tmp_path: Path, *words: str) -> tuple[int, dict, list[dict[str, str]], str]:
    """Exit code, JSON of the last line, rows of the CSV and text of the Markdown file of one quick suite."""
    code = main(["--quick", "--shape", "tiny", "--output", str(tmp_path), *words])
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    markdown, table = (Path(name).read_text(encoding="utf-8") for name in summary["files"][:2])
    return code, summary, list(csv.DictReader(table.splitlines())), markdown


def test_speed_writes_its_reports_and_checks_the_engine(capsys, tmp_path):
    code, summary, rows, markdown = run(capsys, tmp_path, "--suite", "speed", "--naive-passes", "6")
    assert code == 0
    assert summary["passed"]
    assert summary["missed"] == []  # a quick run is not judged
    assert "tiny, 7 tokens: naive / engine" in summary["figures"]["speed"]
    assert tuple(rows[0]) == COLUMNS
    times = {(row["x"], row["provider"]): float(row["median"]) for row in rows if row["metric"] == "time"}
    providers = ["naive", "engine", "engine, first call", "plain forward", "reading the weights"]
    assert list(times) == [(x, provider) for x in ("7", "16") for provider in providers]
    assert min(times.values()) > 0
    assert "takes 3 x (7 + 1) = 24 forwards; 6 timed and extrapolated by 4" in markdown
    assert "holds: tiny, 16 tokens, 3 layers x 16 tokens: engine in float32 agrees with naive float64" in markdown


def test_accuracy_finds_the_engine_closer_to_float64_than_the_naive_way(capsys, tmp_path):
    code, _, rows, markdown = run(capsys, tmp_path, "--suite", "accuracy", "--length", "12")
    assert code == 0
    assert {row["dtype"] for row in rows} == {"float32", "bfloat16"}
    assert {row["workload"] for row in rows} == {"tiny", "tiny, q and k norms x 2.7"}
    peaked = [row for row in rows if (row["dtype"], row["workload"]) == ("float32", "tiny, q and k norms x 2.7")]
    errors = {(row["provider"], row["metric"]): float(row["median"]) for row in peaked}
    for scope in accuracy.SCOPES:
        metric = f"relative error, Head L2, {scope}, p99"
        assert errors["engine", metric] < min(1e-3, errors["naive", metric] / 10)
        assert errors["engine, first call", metric] < 1e-3
    assert "engine and the naive way agree in float64" in markdown


def test_the_engine_in_float64_is_not_its_own_truth(capsys, tmp_path):
    words = ("--suite", "accuracy", "--length", "6", "--dtype", "float64")
    _, _, rows, _ = run(capsys, tmp_path, *words)
    assert rows
    assert not any("all cells" in row["metric"] for row in rows)


def test_a_check_that_fails_is_reported_and_makes_the_exit_code_1(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(accuracy, "FLOAT64_RTOL", -1.0)
    code, summary, _, markdown = run(capsys, tmp_path, "--suite", "accuracy", "--length", "4")
    assert (code, summary["passed"]) == (1, False)
    assert "- FAILS: tiny" in markdown


@pytest.mark.parametrize(("short", "each"), [(0.0, 1), (60.0, MOST_IN_A_ROUND)])
def test_calls_are_timed_in_turn_after_one_warm_up(capsys, monkeypatch, short, each):
    monkeypatch.setattr("benchmarks.measure.SHORT_S", short)
    calls: list[str] = []
    pair = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    timings = time_interleaved(pair, repeats=3, warmups={"b": lambda: calls.append("w")})
    assert "".join(calls) == "aw" + ("a" * each + "b" * each) * 3
    assert len(timings["a"].seconds) == 3 * each
    assert capsys.readouterr().out == ""


def test_timing():
    timing = Timing((3.0, 1.0, 2.0)).scaled(2)
    assert (timing.median, timing.minimum, timing.maximum, timing.spread) == (4.0, 2.0, 6.0, 1.0)


def test_relative_errors_and_their_quantiles():
    errors = relative_errors(np.array([1.1, 0.0, np.nan, 1.0]), np.array([1.0, 0.0, 1.0, 0.0]))
    np.testing.assert_allclose(errors, [0.1, 0.0, np.nan, np.inf])
    found = quantiles(np.array([0.3, np.nan, 0.1, 0.2]))
    assert (found.cells, found.median, found.maximum) == (3, 0.2, 0.3)
    assert quantiles(np.array([np.nan])).cells == 0


@pytest.mark.parametrize(
    ("found", "expected", "agrees"),
    [
        ([1.005, 0.5], [1.0, 0.01], True),  # the second cell lies below the floor
        ([1.02, 0.01], [1.0, 0.01], False),
        ([1.0, np.nan], [1.0, 0.01], False),  # undefined in one table only
        ([0.01, 0.01], [0.01, 0.01], False),  # nothing large enough to compare
    ],
)
def test_agreement(found, expected, agrees):
    found, expected = (np.array(cells).repeat(2).reshape(1, 2, 1, 2) for cells in (found, expected))
    assert agreement(found, expected, sizes=np.ones((1, 1)), tolerance=TOLERANCE)[1] is agrees


def test_random_models_are_seeded_tied_and_hold_bfloat16_values():
    model, same = (random_model(SHAPES["tiny"], seed=3) for _ in range(2))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    for parameter, twin in zip(model.parameters(), same.parameters(), strict=True):
        assert torch.equal(parameter, parameter.bfloat16().float())
        assert torch.equal(parameter, twin)
    peaked = random_model(SHAPES["tiny"], seed=3, peak=2.0).model.layers[0].self_attn
    torch.testing.assert_close(peaked.q_norm.weight, 2 * model.model.layers[0].self_attn.q_norm.weight)
    assert torch.isfinite(model(torch.tensor([random_prompt(9, vocab_size=256)])).logits).all()


def test_costs_of_the_real_shape():
    with torch.device("meta"):
        model = Qwen3ForCausalLM(Qwen3Config(**vars(SHAPES["qwen3-0.6b"]), tie_word_embeddings=True))
    assert sum(parameter.numel() for parameter in model.parameters()) == 596_049_920
    forward, table = forward_cost(model, length=1000), table_cost(model, length=1000, num_tokens=1000)
    assert forward.num_bytes == 28 * (2 * 1024 * 2048 + 2 * 1024 * 1024 + 3 * 1024 * 3072) * 4
    assert forward.flop == 1000 * forward.num_bytes // 2
    assert table.flop / forward.flop == pytest.approx(1.71, abs=0.01)  # 1.73 less the last layer's idle rows
    ceilings = Ceilings(dtype="float32", bytes_per_second=1e9, flop_per_second=1e12)
    assert forward.reading_seconds(ceilings) == forward.num_bytes / 1e9
    assert forward.computing_seconds(ceilings) == forward.flop / 1e12


def test_the_demo_workload_is_a_prompt_of_the_stated_length():
    workload = load_workload("demo", length=40)
    assert len(workload.token_ids) == 40
    assert workload.model.config.model_type == "qwen3"


def test_provenance_names_the_versions():
    assert f"torch {torch.__version__}" in describe_machine("cpu").versions


def test_numbers_are_set_to_the_right():
    grid = _grid(Table(title="t", header=("what", "ms"), rows=(("a", "1.5"), ("bc", "10.25"))))
    assert grid.splitlines() == ["| what |    ms |", "| ---- | ----: |", "| a    |   1.5 |", "| bc   | 10.25 |"]


@pytest.mark.parametrize("words", [["--length", "1"], ["--suite", "none"], ["--repeats", "0"]])
def test_bad_arguments_are_refused(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert capsys.readouterr().err
