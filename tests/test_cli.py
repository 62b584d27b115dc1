"""The command line end to end, as a user meets it."""

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from tiny import CASES, build
from tokenizers_for_tests import byte_level

from engine import AttentionMasker, run_masking_experiment
from engine.commands import main
from engine.errors import NumbersError
from engine.tables.results import scan_table

ROOT = Path(__file__).parent.parent
EIFFEL = "The Eiffel Tower is in"
COLUMNS = ["layer", "token_masked", "token_position", "variant", "l2_distance", "cosine_distance"]


@pytest.fixture(scope="module")
def expected():
    return run_masking_experiment(EIFFEL, device="cpu")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words):
    return main([*words, "--device", "cpu"])


def test_the_default_run_writes_the_table_and_a_summary(expected, capsys, elsewhere):
    assert run("--prompt", EIFFEL) == 0
    assert [path.name for path in elsewhere.iterdir()] == ["mask_impact.csv"]
    written = scan_table("mask_impact.csv").collect()
    assert written.columns == COLUMNS
    assert written.equals(expected.with_columns(pl.col("variant").cast(pl.String)))
    out = capsys.readouterr().out
    for fact in (
        "embedded demo model",
        "1 ' Eiffel'",
        "' Paris' 0.9",
        "120 rows -> mask_impact.csv",
        "24 forward passes",
    ):
        assert fact in out


def test_the_table_has_the_documented_order_and_types(expected):
    assert expected.columns == COLUMNS
    types = dict(expected.schema)
    assert types["layer"].is_integer()
    assert types["token_position"].is_integer()
    assert isinstance(types["variant"], pl.Enum)
    assert types["l2_distance"] == types["cosine_distance"] == pl.Float32
    assert expected.height == 4 * 5 * (2 + 4)
    assert expected.equals(expected.sort("layer", "token_position", "variant"))
    assert expected["variant"].cast(str).to_list()[:6] == ["Full", "Attn", "Head_0", "Head_1", "Head_2", "Head_3"]
    assert expected["token_masked"].unique(maintain_order=True).to_list() == ["The", " Eiffel", " Tower", " is", " in"]


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl", "CSV"])
def test_the_suffix_chooses_the_format(suffix, expected):
    assert run("--prompt", EIFFEL, "--output", f"table.{suffix}", "--layers", "0-1,3", "--tokens", "1,3-4") == 0
    written = scan_table(f"table.{suffix}").collect().with_columns(pl.col("variant").cast(pl.String))
    part = expected.filter(pl.col("layer").is_in([0, 1, 3]) & pl.col("token_position").is_in([1, 3, 4]))
    np.testing.assert_allclose(written["l2_distance"], part["l2_distance"], rtol=1e-4)
    assert written["token_masked"].to_list() == part["token_masked"].to_list()


def test_a_dash_is_csv_on_stdout_and_nothing_else(expected):
    command = [sys.executable, str(ROOT / "cli.py"), "--prompt", EIFFEL, "--output", "-", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, check=True)
    written = pl.read_csv(io.BytesIO(done.stdout))
    assert written.columns == COLUMNS
    assert written.height == expected.height
    assert b"embedded demo model" in done.stderr


def test_verify_agrees_and_shows_shapes(capsys):
    assert main(["verify", "--layer", "2", "--token", "1", "--samples", "4", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    for fact in ("masked pattern", "(1, 2, 2, 5)", "Head_3", "relative error", "5 of 5 cells agree", "the mask bites"):
        assert fact in out


def test_verify_fails_when_the_engine_is_wrong(monkeypatch, capsys):
    """A mask that does not bite must be found out."""
    import engine.sweeps.sweep

    right = engine.sweeps.sweep.joint_z

    def without_mask(*args, copies, **kwargs):
        return right(*args, copies=replace(copies, hidden=copies.hidden * 0), **kwargs)

    monkeypatch.setattr(engine.sweeps.sweep, "joint_z", without_mask)
    assert main(["verify", "--layer", "2", "--token", "1", "--device", "cpu"]) == 1
    assert "0 of 1 cells agree" in capsys.readouterr().out


def test_analyze_reads_what_run_wrote(capsys):
    assert run("--prompt", EIFFEL, "--output", "table.parquet") == 0
    capsys.readouterr()
    assert main(["analyze", "table.parquet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)


USER_ERRORS = [
    (["--prompt", ""], "the prompt is empty"),
    (["--prompt", "x"], "nothing left to attend to"),
    (["--prompt", "The Eiffel Tower " * 3000], "tokens, the model reads"),
    (["--prompt", "a\udcffb"], "not valid text"),
    (["--prompt", EIFFEL, "--layers", "0-4"], "there is no layer 4; this run has layers 0 to 3"),
    (["--prompt", EIFFEL, "--tokens", "5"], "there is no token 5; this run has tokens 0 to 4"),
    (["--prompt", EIFFEL, "--layers", "3-1"], "not a list of indices"),
    (["--prompt", EIFFEL, "--tokens", "one"], "not a list of indices"),
    (["--prompt", EIFFEL, "--tokens", ""], "not a list of indices"),
    (["--prompt", EIFFEL, "--tokens=-1"], "not a list of indices"),
    (["--prompt", EIFFEL, "--model", "./nothing"], "there is no model folder './nothing'"),
    (["--prompt", EIFFEL, "--dtype", "int8"], "unknown dtype 'int8'"),
    (["--prompt", EIFFEL, "--output", "nowhere/table.csv"], "folder"),
    (["--prompt", EIFFEL, "--output", "table.xlsx"], ".csv"),
    (["analyse", "x.csv"], "unknown command 'analyse'; the commands are run, verify, analyze"),
    (["verify", "--layer", "9"], "there is no layer 9"),
    (["verify", "--token", "-1"], "there is no token -1"),
    (["verify", "--samples", "-2"], "--samples -2"),
    (["analyze", "nothing.csv"], "nothing.csv"),
]


@pytest.mark.parametrize(("words", "message"), USER_ERRORS, ids=[message for _, message in USER_ERRORS])
def test_a_users_mistake_is_one_line_and_nothing_is_written(words, message, capsys, elsewhere):
    words = words if words[0].startswith("analy") else [*words, "--device", "cpu"]
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == "" or words[0] == "verify"
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("mask-impact: error: ")
    assert message in captured.err
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("device", ["cuda", "cuda:7", "tpu"])
def test_a_device_that_is_not_there(device, capsys):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    assert main(["--prompt", EIFFEL, "--device", device]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("words", [[], ["--nothing"], ["--prompt"], ["verify", "--layer", "x"], ["analyze"]])
def test_misspelt_options_are_one_line(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "--help" in err


@pytest.mark.parametrize("words", [["--help"], ["verify", "--help"], ["analyze", "--help"]])
def test_help_has_examples_and_ends_well(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 0
    assert "example" in capsys.readouterr().out


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_numbers_name_the_layer(value, tmp_path, capsys):
    model = build(CASES[0])
    model.model.layers[1].mlp.down_proj.weight.data[0, 0] = value
    model.save_pretrained(tmp_path / "model")
    byte_level().save_pretrained(tmp_path / "model")
    assert run("--prompt", "The Eiffel", "--model", str(tmp_path / "model"), "--output", "table.csv") == 2
    assert "layer 1 are not finite" in capsys.readouterr().err
    assert not Path("table.csv").exists()


def test_nothing_defined_is_an_error_that_says_why(tmp_path, capsys):
    case = next(case for case in CASES if case.name == "mistral-window-1")
    with pytest.raises(ValueError, match="the only one that its query attends to"):
        AttentionMasker(build(case)).run([1, 2, 3], tokens=[2])


def test_a_baseline_that_overflows_is_no_undefined_cell():
    """The difference stays finite, the vector that it belongs to does not."""
    model = build(next(case for case in CASES if case.name == "qwen3"))
    with torch.no_grad():
        last = model.model.layers[2]
        last.mlp.down_proj.weight.zero_()[0] = 1e37
        last.mlp.gate_proj.weight.mul_(1e3)
        last.self_attn.o_proj.weight.mul_(1e-3)
    with pytest.raises(NumbersError, match="layer 2 are not finite"):
        AttentionMasker(model).run([1, 2, 3, 4, 5], layers=[2])


def test_undefined_cells_are_null_and_never_nan():
    case = next(case for case in CASES if case.name == "mistral-window-1")
    table = AttentionMasker(build(case)).run([1, 2, 3])
    undefined = table.filter(pl.col("token_position") == 2)
    assert undefined["l2_distance"].null_count() == undefined.height
    assert table["l2_distance"].is_nan().sum() == 0
    assert table["cosine_distance"].is_nan().sum() == 0


def test_an_interrupt_is_no_traceback(monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(AttentionMasker, "measure", interrupted)
    assert run("--prompt", EIFFEL) == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_defect_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(AttentionMasker, "measure", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("--prompt", EIFFEL)


def test_running_out_of_memory_says_what_helps(monkeypatch, capsys):
    import engine.sweeps.passes

    def exhausted(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(engine.sweeps.passes, "make_batch", exhausted)
    assert run("--prompt", EIFFEL) == 2
    assert "ran out of memory" in capsys.readouterr().err
