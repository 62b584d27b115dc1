"""The smaller suites in small: memory, scaling, startup, peers, the GPU; the bars, and what is left out by name."""

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import cuda, drawing, memory, peers, startup
from benchmarks.__main__ import EXIT_LEFT_OUT, SUITES, main
from benchmarks.agreement import check_engine
from benchmarks.analysis import WAYS
from benchmarks.bars import BARS, judge
from benchmarks.calls import all_passes, default_passes
from benchmarks.copies import PeerRun
from benchmarks.illustration import DRAWN, illustrated, panels_of
from benchmarks.machine import describe_machine
from benchmarks.naive import run_naive
from benchmarks.options import Options
from benchmarks.peaks import peak_memory
from benchmarks.report import Report, Row, to_markdown
from benchmarks.scaling import _halvings, exponent
from benchmarks.stages import STAGES, run_stages
from benchmarks.workloads import Workload, load_workload
from engine import AttentionMasker

pytestmark = pytest.mark.usefixtures("one_thread")


def run(capsys, folder: Path, *words: str) -> tuple[int, dict, str]:
    """Exit code, JSON of the last line and Markdown of one quick suite."""
    code = main(["--quick", "--repeats", "1", "--output", str(folder), *words])
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    return code, summary, Path(summary["files"][0]).read_text(encoding="utf-8")


def engine_row(metric: str, x: int, value: float) -> Row:
    return Row.of("engine", metric, "1", (value,), workload="qwen3-0.6b", dtype="float32", x=x)


def test_bars_are_met_or_missed_and_stand_in_the_report():
    rows = [engine_row("engine / plain forward", 7, 0.39), engine_row("naive / engine", 7, 449.0)]
    assert [verdict.met for verdict in judge("speed", rows)] == [True, False]
    assert judge("speed", [replace(row, dtype="bfloat16") for row in rows]) == []
    report = Report(suite="speed", command="-", provenance=describe_machine("cpu"), rows=rows, judged=True)
    assert report.passed  # a bar is no check
    text = to_markdown(report)
    assert "engine / plain forward |   0.39 | <= 0.4 | met" in text
    assert "| >= 450 | MISSED" in text


def test_every_bar_has_a_limit_and_a_suite():
    assert set(BARS) <= set(SUITES)
    assert all(bar.limit > 0 for bars in BARS.values() for bar in bars)


def test_naive_passes_by_default():
    tiny = load_workload("tiny", length=7)
    assert default_passes(tiny) == all_passes(tiny) == 24
    assert default_passes(tiny.of_length(65)) == 6
    assert default_passes(tiny.of_length(200)) == 3


def test_a_large_model_is_checked_in_three_layers(monkeypatch):
    monkeypatch.setattr("benchmarks.workloads.SMALL", 0)
    workload = load_workload("tiny", length=40)
    checks = check_engine(workload, AttentionMasker(workload.model))
    assert [text.split(":")[0] for text in checks] == ["tiny, 40 tokens, 3 layers x 3 tokens"] * 2
    assert all(checks.values())
    assert default_passes(workload) == 6


def test_memory_report(capsys, tmp_path, monkeypatch):
    sizes = {"engine": 600, "plain forward": 300}

    def probe(name, length, provider, options):
        return memory.Probe(
            provider=provider,
            workload=name,
            dtype=options.dtype,
            length=length,
            loaded_bytes=2**30,
            base_bytes=2**31,
            growth_bytes=sizes[provider],
            method="-",
        )

    monkeypatch.setattr(memory, "_probe", probe)
    code, summary, markdown = run(capsys, tmp_path, "--suite", "memory")
    assert code == 0
    assert summary["figures"]["memory"] == {"tiny, 16 tokens: engine / plain forward, peak memory": 2.0}
    assert "|             1.000 |                2.000 |" in markdown


def test_memory_is_probed_in_a_process_of_its_own():
    probe = memory._probe("tiny", 8, memory.ENGINE, Options(shapes=("tiny",)))
    assert (probe.workload, probe.length, probe.provider) == ("tiny", 8, "engine")
    assert probe.base_bytes > 2**25
    assert probe.growth_bytes < 2**30


def test_peak_memory_sees_what_a_call_holds_and_frees():
    peak = peak_memory(lambda: torch.ones(2**25).sum())
    assert 0.9 * 2**27 < peak.growth_bytes < 3 * 2**27


def test_scaling_report(capsys, tmp_path):
    code, summary, markdown = run(capsys, tmp_path, "--suite", "scaling")
    assert code == 0
    assert len(summary["files"]) == (3 if find_spec("matplotlib") else 2)
    assert ("figure was left out" in markdown) == (find_spec("matplotlib") is None)
    assert {name.rsplit(",")[0] for name in summary["figures"]["scaling"]} == {
        "tiny: exponent in tokens",
        "tiny: exponent in layers",
        "tiny: exponent in masked tokens",
        "tiny: exponent in prompts",
    }


def test_a_report_shows_its_main_figures(monkeypatch):
    labels = {"workload": "tiny", "dtype": "float32"}
    rows = [
        Row.of("engine", "time", "s", (0.1, 0.1, 0.2), **labels, x=7),
        Row.of("naive", "time", "s", (3.0, 3.0, 3.0), **labels, x=7),
        Row.of("engine", "share", "1", (0.5,), **labels, x=7),
        Row.of("engine", "time", "s", (0.4, 0.4, 0.4), **labels, x=64),
    ]
    assert list(panels_of(rows, "time")) == [
        ("tiny, 7 tokens, float32", "s", ["engine", "naive"], [0.1, 3.0]),
        ("tiny, 64 tokens, float32", "s", ["engine"], [0.4]),
    ]
    errors = [Row.of("naive", "relative error, Head L2, all cells, p99", "1", (2.0,), **labels, x=9)]
    assert list(panels_of(errors, DRAWN["accuracy"])) == [
        ("tiny, 9 tokens, float32", "relative error", ["naive Head L2"], [2.0])
    ]
    report = Report(suite="speed", command="", provenance=describe_machine("cpu"), rows=rows)
    drawing, note = illustrated(report)
    assert (drawing is None) == (find_spec("matplotlib") is None)
    assert "figure" in note
    assert drawing is None or drawing.count("tiny, ") >= 2
    assert illustrated(replace(report, rows=[])) == (None, "")


def test_exponents():
    sizes = np.array([8, 16, 64])
    assert exponent(sizes, 3e-4 * sizes**1.5) == pytest.approx(1.5)
    assert _halvings(28) == [1, 3, 7, 14, 28]


def test_a_figure_is_drawn_where_matplotlib_is():
    pytest.importorskip("matplotlib")
    svg, _ = drawing.draw([("tokens", "all layers", [1, 2, 4], [0.1, 0.2, 0.3])])
    assert svg is not None
    assert svg.count("<svg") == 1


def test_startup_report(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(startup, "_output", lambda *_: json.dumps(dict.fromkeys(STAGES, 0.25)))
    code, summary, markdown = run(capsys, tmp_path, "--suite", "startup")
    assert code == 0
    assert "stage: loading" in markdown
    assert "main job: time above importing torch and transformers" in summary["figures"]["startup"]


def test_the_stages_are_those_of_the_main_job(tmp_path):
    path = tmp_path / "table.csv"
    seconds = run_stages(str(path), "The Eiffel Tower is in")
    assert tuple(seconds) == STAGES
    assert path.read_text().startswith("layer,token_masked,")


class NaivePeer:
    """Stands in for a library; its numbers are the naive way's times ``factor``."""

    factor = 1.0

    @classmethod
    def table_call(cls, model, token_ids):
        naive = run_naive(model, token_ids)
        return lambda: PeerRun(distances=naive.distances * cls.factor, sizes=naive.sizes)


@pytest.mark.parametrize(("factor", "code"), [(1.0, 0), (1.1, 1)])
def test_a_peer_is_timed_if_its_table_is_the_engines(capsys, tmp_path, monkeypatch, factor, code):
    monkeypatch.setattr(peers, "PEERS", {"naive": "numpy", "absent": "no-such-library"})
    monkeypatch.setattr(peers, "import_module", lambda name: NaivePeer)
    monkeypatch.setattr(NaivePeer, "factor", factor)
    found, summary, markdown = run(capsys, tmp_path, "--suite", "peers", "--length", "6")
    assert found == code
    assert ("tiny, 6 tokens: naive / engine" in summary["figures"]["peers"]) == (factor == 1.0)
    assert ("naive was left out: its numbers are not the engine's" in markdown) == (factor != 1.0)
    assert "absent was left out: pip install no-such-library" in markdown


def test_a_peer_that_raises_is_left_out_by_name(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "PEERS", {"broken": "numpy"})
    code, _, markdown = run(capsys, tmp_path, "--suite", "peers", "--length", "4")
    assert code == 0
    assert "broken was left out: ModuleNotFoundError" in markdown


@pytest.mark.parametrize("package", peers.PEERS.values())
def test_real_peers_give_the_engines_table(package):
    name = package.replace("-", "_")
    pytest.importorskip(name)
    workload = load_workload("tiny", length=7)
    call = peers.import_module(f"benchmarks.peer_{name}").table_call(workload.model, workload.token_ids)
    _, agrees = peers._check(package, call, workload, AttentionMasker(workload.model))
    assert agrees


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("words", [["--suite", "cuda"], ["--suite", "speed", "--device", "cuda"]])
def test_without_a_gpu_one_line_says_so(capsys, words):
    assert main(words) == EXIT_LEFT_OUT
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert "sees no CUDA GPU" in err


def test_a_suite_that_cannot_run_is_left_out_of_all_by_name(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.__main__.SUITES", {"cuda": "needs a GPU", "peers": "does not"})
    monkeypatch.setattr(peers, "PEERS", {})
    monkeypatch.setattr(cuda, "DEVICE", "cuda:99")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, summary, _ = run(capsys, tmp_path, "--suite", "all")
    assert code == 0
    assert "sees no CUDA GPU" in summary["left_out"]["cuda"]
    assert "peers" in summary["figures"]


def test_a_workload_of_another_length_keeps_its_model():
    workload = load_workload("tiny", length=5)
    other = workload.of_length(9)
    assert isinstance(other, Workload)
    assert other.model is workload.model
    assert (workload.label, other.label) == ("tiny, 5 tokens", "tiny, 9 tokens")
    assert other.token_ids[:5] == workload.token_ids


def test_help_tells_every_suite(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in SUITES)


def test_streamed_weights_beside_weights_in_memory(capsys, tmp_path):
    code, summary, markdown = run(capsys, tmp_path, "--suite", "stream")
    assert code == 0
    assert "holds: tiny, 0.0 GB of float32, in float32: both tables have the same digits" in markdown
    assert {"tiny, float32, streamed: peak memory", "tiny, float32, in memory: command"} <= set(
        summary["figures"]["stream"]
    )


def test_the_self_check_is_timed(capsys, tmp_path):
    code, summary, markdown = run(capsys, tmp_path, "--suite", "check", "--dtype", "float32")
    assert code == 0
    assert "| tiny     | streamed" in markdown
    figures = summary["figures"]["check"]
    assert all(figures[f"tiny, float32, in memory: {step}"] > 0 for step in ("loading", "self-check"))


def test_the_analysis_suite_times_every_way(capsys, tmp_path):
    code, summary, markdown = run(capsys, tmp_path, "--suite", "analysis")
    assert code == 0
    for way in WAYS:
        assert f"| {way} " in markdown
        assert summary["figures"]["analysis"][f"{way}: time"] > 0
        assert summary["figures"]["analysis"][f"{way}: peak memory"] > 1e7
