"""The parity suite in small: its report, and what it makes of errors."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

import benchmarks.parity
from benchmarks.__main__ import main
from benchmarks.naive import run_naive
from benchmarks.parity import FLOOR, METRICS, table_errors
from benchmarks.zoo import CASES, build, token_ids

pytestmark = pytest.mark.usefixtures("one_thread")
FEW = [case for case in CASES if case.name in ("llama-biases", "mistral", "gpt-2", "gpt-oss")]


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Exit code, rows of the CSV and Markdown of the suite on a few models."""
    monkeypatch.setattr(benchmarks.parity, "CASES", FEW)

    def go(*words):
        code = main(["--suite", "parity", "--output", str(tmp_path), *words])
        files = map(Path, json.loads(capsys.readouterr().out.splitlines()[-1])["files"])
        texts = {file.suffix: file.read_text(encoding="utf-8") for file in files}
        return code, list(csv.DictReader(texts[".csv"].splitlines())), texts[".md"]

    return go


def test_the_report(run):
    code, rows, markdown = run()
    assert code == 0
    assert len(rows) == len(FEW) * 2 * len(METRICS)
    assert {row["workload"] for row in rows} == {case.name for case in FEW}
    assert all(float(row["median"]) < (1e-8 if row["dtype"] == "float64" else 1e-3) for row in rows)
    by_family, by_model = markdown.split("## Largest errors by ")[1:]
    assert "| gpt-oss" in by_family
    assert "| llama-biases" in by_model
    assert "holds: every error is within its bound" in by_model


def test_a_quick_run_takes_the_first_of_each_family(run):
    _, rows, markdown = run("--quick", "--dtype", "float64")
    assert {row["workload"] for row in rows} == {"mistral", "gpt-2", "gpt-oss"}
    assert "QUICK RUN" in markdown


def test_an_error_beyond_its_bound_fails(run, monkeypatch):
    monkeypatch.setattr(benchmarks.parity, "measure", lambda case, dtype: (0.0, 0.0, 1.0, 0.0))
    code, _, markdown = run("--dtype", "float32")
    assert code == 1
    assert "FAILS: mistral in float32" in markdown


def test_errors_of_tables():
    case = FEW[0]
    naive = run_naive(build(case).double(), token_ids(case)[:4])
    assert table_errors(naive.distances, naive) == (0.0, 0.0)
    off = naive.distances.copy()
    off[1, 2, 3] *= 1.5
    assert table_errors(off, naive) == pytest.approx((0.5, 0.5))
    small = naive.distances.copy()
    small[0, 0, 0] = 0.0
    assert np.isfinite(table_errors(small, naive)).all()
    off[0, 0, 0, 0] = np.nan
    assert table_errors(off, naive) == (np.inf, np.inf)
    assert 0 < FLOOR < 1e-3
