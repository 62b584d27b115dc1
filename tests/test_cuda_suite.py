"""The cuda suite with the processor in the GPU's place, and its bars."""

from dataclasses import replace

import pytest
import torch
from tape import TapeRecorder
from test_benchmarks_suites import run

from benchmarks import crowd, cuda, machine, timings
from benchmarks.accuracy import measure_errors
from benchmarks.bars import BARS, judge
from benchmarks.calls import EAGER, SPLIT_EAGER, gpu_calls
from benchmarks.crowd import measure_crowd
from benchmarks.machine import Ceilings
from benchmarks.options import Options
from benchmarks.workloads import Workload, load_workload
from engine.sweeps.replay import Replay

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def processor_as_gpu(monkeypatch):
    ceilings = {"bytes_per_second": 1e9, "flop_per_second": 1e12}
    monkeypatch.setattr(cuda, "measure_ceilings", lambda *_, dtype, quick: Ceilings(dtype=dtype, **ceilings))
    monkeypatch.setattr(cuda, "DEVICE", "cpu")


def test_the_cuda_suite_with_the_processor_in_its_place(capsys, tmp_path, processor_as_gpu):
    code, summary, markdown = run(capsys, tmp_path, "--suite", "cuda", "--length", "7")
    assert code == 0
    figures = summary["figures"]["cuda"]
    for name in ("engine / plain forward", "engine, split / plain forward", "naive / engine, split"):
        assert f"tiny, 7 tokens: {name}" in figures
    assert "tiny, 7 tokens, bfloat16: engine / plain forward" in figures
    assert "tiny, 7 tokens, bfloat16: engine, split / plain forward" not in figures
    assert "tiny, 8 tokens: engine, split, share of the matrix rate, 4 prompts at once" in figures
    for call in ("engine, not replayed", "engine, split, not replayed"):
        assert f"| tiny, 7 tokens | {call}" in " ".join(markdown.split())
    assert "engine, split: tiny, 7 tokens" in markdown, "its answers are checked"
    assert "above what is held before it, GiB" in markdown
    assert "Relative errors: tiny, q and k norms x 2.7, 16 tokens, bfloat16, all cells" in markdown


def test_split_products_keep_the_bars_of_float32(processor_as_gpu):
    options = Options(shapes=("tiny",), lengths=(16,), quick=True)
    found, *_ = measure_errors(options, split=True)
    p99 = {key[3]: q.p99 for key, q in found.errors.items() if key[:3] == ("all cells", "Head", "L2")}
    assert p99["engine, split"] < 1e-3


def test_a_short_pass_that_is_not_replayed_fails_a_check(monkeypatch):
    workload = load_workload("tiny", length=7)
    timed = gpu_calls(workload, naive_passes=1)
    assert timings._replay_checks(workload, timed) == {}, "a processor replays nothing"
    for masker in timed.steady.values():
        masker._measuring.replay = Replay(TapeRecorder())
    monkeypatch.setattr(type(workload.model), "device", torch.device("cuda"))
    assert set(timings._replay_checks(workload, timed).values()) == {False}
    for name in timed.steady:
        timed.warmups[name]()
        timed.calls[name]()
    assert timings._replay_checks(workload, timed) == {
        "tiny, 7 tokens: engine was replayed": True,
        "tiny, 7 tokens: engine, split was replayed": True,
    }
    before = [masker.replay.num_replayed for masker in timed.steady.values()]
    timed.calls[EAGER]()
    timed.calls[SPLIT_EAGER]()
    assert [masker.replay.num_replayed for masker in timed.steady.values()] == before


def test_the_share_of_split_products_counts_their_terms():
    own, narrow = (Ceilings(dtype="-", bytes_per_second=1e9, flop_per_second=rate) for rate in (1e12, 1.5e13))
    found = measure_crowd(load_workload("tiny", length=7), Options(repeats=1, quick=True), own=own, narrow=narrow)
    least = found.least_seconds
    assert least["engine, split"] == pytest.approx(least["engine"] * 3 / 15)
    assert found.shares["engine"] == pytest.approx(least["engine"] / found.timings["engine"].median)


def test_bars_of_an_h200_name_rows_that_are_made(capsys, tmp_path, processor_as_gpu, monkeypatch):
    """On a machine of that name every bar finds its figure."""
    shape = Workload.labels.fget
    monkeypatch.setattr(Workload, "labels", property(lambda self: shape(self) | {"workload": "qwen3-0.6b"}))
    monkeypatch.setattr(crowd, "QUICK_PROMPTS", 256)
    monkeypatch.setattr(crowd, "QUICK_LENGTH", 64)
    workload = load_workload("tiny", length=7)
    ceilings = Ceilings(dtype="-", bytes_per_second=1e9, flop_per_second=1e12)
    options = Options(repeats=1, quick=True, naive_passes=1)
    rows = [*timings.measure_on_gpu(workload, options, ceilings).rows]
    rows += [replace(row, x=4096) for row in rows]
    rows += measure_crowd(workload, options, own=ceilings, narrow=ceilings).rows
    assert [verdict.bar for verdict in judge("cuda", rows)] == list(BARS["cuda"])


def test_a_gpu_names_its_driver(monkeypatch):
    answers = {"stdout": "570.1\n570.1\n"}
    monkeypatch.setattr(machine.subprocess, "run", lambda *_, **__: type("Done", (), answers))
    assert machine._driver("cuda") == [f"cuda {torch.version.cuda}", "driver 570.1"]
    assert machine._driver("cpu") == []
