"""What a person sees: on any encoding, on streams that are closed or full, with wide signs, and where it came from."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from engine.commands import main
from engine.errors import ResultsError, SelectionError
from engine.experiment import Impact
from engine.files import show, write_stdout
from engine.findings.terminal import plain, quoted, width
from engine.questions.indices import MOST_INDICES, parse_indices
from engine.summary import summarize
from engine.tables.results import PROVENANCE_KEY, check_writable, read_provenance, scan_table, write_table
from engine.tables.table import build_table, variant_names
from engine.text.prompts import Prompt

ROOT = Path(__file__).parent.parent
RUN = ["--prompt", "The Eiffel Tower is in", "--device", "cpu"]
PIECES = ["<s>", "東京タワーへようこそ日本", "a\x1b[31m\n", "\U0001f5fc" * 9, " שלום", "e\u0301" * 30]
needs_full_device = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def impact(pieces: list[str], *, layers: int = 3, heads: int = 2) -> Impact:
    numbers = np.random.default_rng(0).random((layers, len(pieces), 2 + heads, 2), dtype=np.float32)
    prompt = Prompt(tuple(range(len(pieces))), tuple(pieces))
    return Impact(prompt, tuple(range(layers)), tuple(range(len(pieces))), tuple(variant_names(heads)), numbers)


def small_table() -> pl.DataFrame:
    axes = {"layers": range(1), "positions": range(2), "pieces": ["a", "b"], "variants": variant_names(1)}
    return build_table(np.ones((1, 2, 3, 2), np.float32), **axes)


def stream(encoding: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding)


def shell(line: str) -> subprocess.CompletedProcess:
    """The command line as a shell starts it; ``@`` stands for the program."""
    program = shlex.join([sys.executable, str(ROOT / "cli.py")])
    env = os.environ | {"PYTHONIOENCODING": "cp1252"}
    return subprocess.run(["sh", "-c", line.replace("@", program)], capture_output=True, env=env, check=False)


@pytest.mark.parametrize("output", ["table.csv", "-"])
def test_the_summary_is_utf8_whatever_the_encoding(output, monkeypatch):
    out, err = stream("cp1252"), stream("ascii")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    assert main([*RUN, "--output", output]) == 0
    person = err if output == "-" else out
    assert "█" in person.buffer.getvalue().decode("utf-8")


def test_text_printed_before_stays_before(monkeypatch):
    monkeypatch.setattr(sys, "stdout", stream("latin-1"))
    print("first")
    show("sécond")
    print("third")
    write_stdout("█")
    assert sys.stdout.buffer.getvalue() == "first\nsécond\nthird\n█".encode()


def test_a_stream_of_text_alone_gets_text(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    show("█", end="")
    assert sys.stdout.getvalue() == "█"


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no pseudo-terminals here")
def test_a_terminal_gets_its_own_encoding():
    reader, terminal = os.openpty()
    script = "from engine.files import show; show('é█.', end=''); show('é█.', end='', stream='stderr')"
    words = {"PYTHONIOENCODING": "latin-1"}
    subprocess.run(
        [sys.executable, "-c", script], stdout=terminal, stderr=terminal, cwd=ROOT, env=os.environ | words, check=True
    )
    assert os.read(reader, 100) == "é?.é?.".encode("latin-1")


def test_a_run_without_standard_output_keeps_its_table(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", None)
    assert main([*RUN, "--output", "table.csv"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("mask-impact: error: the table is in table.csv, but its summary cannot be shown: standard ou")
    assert err.count("\n") == 1
    assert scan_table("table.csv").collect().height == 120


@needs_full_device
def test_a_run_on_a_full_standard_output_keeps_its_table():
    done = shell("@ --prompt 'The Eiffel Tower is in' --device cpu --output table.csv > /dev/full")
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    assert b"the table is in table.csv" in done.stderr
    assert b"No space left" in done.stderr
    assert Path("table.csv").exists()


@pytest.mark.parametrize(
    "line",
    [
        "@ analyze table.csv >&-",
        "@ analyze table.csv --json >&-",
        pytest.param("@ analyze table.csv > /dev/full", marks=needs_full_device),
        pytest.param("@ --help > /dev/full", marks=needs_full_device),
        "@ --prompt 'The Eiffel' --output - >&-",
    ],
)
def test_what_standard_output_does_not_take_is_one_line(line):
    write_table(small_table(), "table.csv")
    done = shell(line)
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    assert done.stderr.startswith(b"mask-impact: error: standard output ")


def test_a_missing_standard_output_is_known_before_the_work(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(ResultsError, match="standard output is closed"):
        check_writable("-")


def test_an_error_never_lands_in_the_table():
    done = shell("@ analyze nothing.csv 2>&-")
    assert (done.returncode, done.stdout) == (2, b"")


@pytest.mark.parametrize("lost", [None, io.TextIOWrapper(io.BytesIO())])
def test_a_lost_standard_error_is_no_failure(lost, monkeypatch, capsys):
    if lost is not None:
        lost.close()
    monkeypatch.setattr(sys, "stderr", lost)
    show("nobody hears this", stream="stderr")
    assert main(["analyze", "nothing.csv"]) == 2
    assert capsys.readouterr().out == ""


def test_a_reader_that_goes_away_is_no_failure():
    write_table(small_table(), "table.csv")
    done = shell("(@ analyze table.csv; echo status $? >&2) | true")
    assert done.stderr == b"status 0\n"


ORIGIN = {
    "description": "a model\n\x1b[31m",
    "layers": 4,
    "heads": 2,
    "dtype": "float32",
    "device": "cpu",
    "prompt": "東京" * 200,
    "torch": "2",
    "transformers": "5",
}


def test_parquet_says_what_produced_it(capsys):
    assert main([*RUN, "--output", "table.parquet"]) == 0
    found = read_provenance("table.parquet")
    assert found["model"] == "embedded demo model"
    assert found["prompt"] == "The Eiffel Tower is in"
    assert (found["layers"], found["heads"], found["dtype"], found["device"]) == (4, 4, "float32", "cpu")
    assert {"description", "mask_impact", "torch", "transformers"} <= set(found)
    capsys.readouterr()
    assert main(["analyze", "table.parquet"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Model   embedded demo model")
    assert lines[1].startswith("Run     4 layers x 4 heads, float32 on cpu; torch ")
    assert lines[2:4] == ["Prompt  The Eiffel Tower is in", ""]
    assert main(["analyze", "table.parquet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["provenance"] == found


def test_provenance_changes_no_table():
    for suffix in ("csv", "jsonl", "parquet"):
        write_table(small_table(), f"with.{suffix}", provenance=ORIGIN)
        write_table(small_table(), f"without.{suffix}")
        assert scan_table(f"with.{suffix}").collect().equals(scan_table(f"without.{suffix}").collect())
        assert read_provenance(f"with.{suffix}") == (ORIGIN if suffix == "parquet" else None)
        assert read_provenance(f"without.{suffix}") is None


def test_odd_provenance_stays_within_the_terminal(capsys):
    write_table(small_table(), "table.parquet", provenance=ORIGIN)
    assert main(["analyze", "table.parquet"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Model   a model??[31m"
    assert max(map(width, lines)) <= 100


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"layers": NaN}', '{"layers": 1e999}', "[" * 100_000])
def test_foreign_metadata_is_passed_over(text, capsys):
    small_table().write_parquet("table.parquet", metadata={PROVENANCE_KEY: text})
    assert read_provenance("table.parquet") is None
    assert main(["analyze", "table.parquet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["provenance"] is None


def test_a_damaged_file_has_no_provenance():
    Path("table.parquet").write_bytes(b"PAR1" * 10)
    with pytest.raises(ResultsError, match="cannot be read"):
        read_provenance("table.parquet")


def test_the_summary_aligns_wide_signs():
    lines = summarize(impact(PIECES)).splitlines()
    assert all(sign.isprintable() or sign == "\u200e" for line in lines for sign in line)
    start = next(row for row, line in enumerate(lines) if line.startswith("Most impactful"))
    middle = width(lines[start].partition("by mean cosine")[0])
    for line in lines[start + 1 :]:
        left = next(cut for cut in range(len(line)) if width(line[:cut]) == middle)
        assert line[left - 2 : left] == "  "
        assert line[left] != " "
    header, *rows = lines[lines.index("") + 3 : start - 1]
    labels = [width(header.partition(quoted(piece, columns=10))[0]) for piece in PIECES]
    assert labels == sorted(set(labels))
    for row in rows:
        assert [cell.start() for cell in re.finditer(r"\d\.\d{4}", row)] == labels


def test_the_summary_of_a_long_prompt_is_short_and_fast():
    long = impact(["東京" * 30] * 20_000, layers=2)
    started = time.perf_counter()
    lines = summarize(long).splitlines()
    assert time.perf_counter() - started < 2
    assert "... 19960 more ..." in lines[0]
    assert len(lines) < 20
    assert max(map(width, lines[1:])) <= 100


def test_an_undefined_mean_is_a_dash():
    found = impact(["a", "b"])
    found.distances[:, 0] = np.nan
    assert any(line.split()[-1] == "-" for line in summarize(found).splitlines() if "0 'a'" in line)


@pytest.mark.parametrize("columns", [6, 10, 40])
def test_texts_are_cut_to_their_columns(columns):
    for piece in PIECES:
        assert width(quoted(piece, columns=columns)) <= columns
        assert width(plain(piece, columns=columns)) <= columns


@pytest.mark.parametrize("text", ["0-9999999", f"0-{MOST_INDICES}", "5,0-99999", ",".join(["0-99999"] * 9)])
def test_absurd_ranges_are_refused_at_once(text):
    started = time.perf_counter()
    with pytest.raises(SelectionError, match="lists more than 100,000 indices; choose fewer"):
        parse_indices(text, what="--layers")
    assert time.perf_counter() - started < 0.1


def test_the_longest_list_is_taken():
    assert parse_indices(f"0-{MOST_INDICES - 1}", what="--layers") == list(range(MOST_INDICES))


def test_lists_are_read_before_anything_heavy_is_imported():
    script = (
        "import sys; from engine.commands import main; main(sys.argv[1:]); print({*sys.modules} & {'torch', 'polars'})"
    )
    words = [sys.executable, "-c", script, "--prompt", "x", "--tokens", "0-9999999"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "set()\n"
    assert done.stderr.startswith("mask-impact: error: --tokens '0-9999999' lists more than")
