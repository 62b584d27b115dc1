"""Colours and heat maps of the summary: where a terminal can show them, and nowhere else."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from engine.findings.terminal import width
from engine.runs.impact import Impact
from engine.summaries.heat import BLOCKS, heat_map
from engine.summaries.ink import CIVIDIS, DEPTH_256, PLAIN, TRUE_COLOUR, Ink, contrast, ink_of, nearest_256, ramp
from engine.summary import summarize
from engine.tables.table import variant_names
from engine.text.prompts import Prompt

ROOT = Path(__file__).parent.parent
TERMINAL = {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
ESCAPE = "\x1b["


class Stream:
    """A stream that a person watches, or not."""

    closed = False

    def __init__(self, *, terminal: bool) -> None:
        self.isatty = lambda: terminal


@pytest.mark.parametrize(
    ("terminal", "environ", "depth"),
    [
        (True, TERMINAL, TRUE_COLOUR),
        (True, {"TERM": "xterm-256color"}, DEPTH_256),
        (True, {"TERM": "xterm", "COLORTERM": "24bit"}, TRUE_COLOUR),
        (True, {"TERM": "xterm"}, 0),
        (True, {"TERM": "dumb", "COLORTERM": "truecolor"}, 0),
        (True, {}, 0),
        (True, TERMINAL | {"NO_COLOR": "1"}, 0),
        (True, TERMINAL | {"NO_COLOR": ""}, TRUE_COLOUR),
        (True, TERMINAL | {"NO_COLOR": "1", "FORCE_COLOR": "1"}, 0),
        (False, TERMINAL, 0),
        (False, {"FORCE_COLOR": "1"}, DEPTH_256),
        (False, TERMINAL | {"FORCE_COLOR": "3"}, TRUE_COLOUR),
        (False, TERMINAL | {"FORCE_COLOR": "0"}, 0),
    ],
)
def test_what_a_stream_can_show(terminal, environ, depth):
    ink = ink_of(Stream(terminal=terminal), environ)
    assert ink.depth == depth
    assert (ink.columns is not None) == terminal


def test_no_stream_shows_nothing():
    assert ink_of(None, TERMINAL) == PLAIN


def test_the_ramp_grows_lighter_and_its_texts_stand_out():
    lightness = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in map(ramp, np.linspace(0, 1, 101).tolist())]
    assert lightness == sorted(lightness)
    assert (ramp(-1.0), ramp(0.0), ramp(1.0), ramp(2.0)) == (CIVIDIS[0], CIVIDIS[0], CIVIDIS[-1], CIVIDIS[-1])
    assert contrast(ramp(0.0)) == (255, 255, 255)
    assert contrast(ramp(1.0)) == (0, 0, 0)
    assert [nearest_256(colour) for colour in ((0, 0, 0), (255, 255, 255), (255, 0, 0), (8, 8, 8))] == [
        16,
        231,
        196,
        232,
    ]


def impact(tokens: int, *, layers: int = 3) -> Impact:
    numbers = np.random.default_rng(0).random((layers, tokens, 3, 2), dtype=np.float32)
    prompt = Prompt(tuple(range(tokens)), tuple(f"t{place}" for place in range(tokens)))
    return Impact(prompt, tuple(range(layers)), tuple(range(tokens)), tuple(variant_names(1)), numbers)


def test_colours_change_no_number():
    coloured = summarize(impact(5), ink=Ink(TRUE_COLOUR, 100)).splitlines()
    plain = summarize(impact(5)).splitlines()
    for one, other in zip(coloured, plain, strict=True):
        assert re.findall(r"\d\.\d+", re.sub("\x1b[^m]*m", "", one)) == re.findall(r"\d\.\d+", other)
    assert sum(ESCAPE in line for line in coloured) == 3
    assert not any(ESCAPE in line for line in plain)


@pytest.mark.parametrize("columns", [20, 40, 80, 200])
@pytest.mark.parametrize("depth", [0, DEPTH_256, TRUE_COLOUR])
@pytest.mark.parametrize("tokens", [3, 13, 60, 1000])
def test_every_terminal_gets_a_map_that_fits(columns, depth, tokens):
    found = impact(tokens, layers=60)
    lines = heat_map(
        found.distances[:, :, 0, 1],
        layers=[str(layer) for layer in range(60)],
        positions=range(tokens),
        ink=Ink(depth, columns),
        title="title",
    )
    assert max(map(width, lines[2:-1])) <= columns
    assert len(lines) == 4 + 30
    assert lines[0].startswith("title; the largest of 2 layers")
    assert ("neighbouring tokens" in lines[0]) == (tokens > columns - 7)


def test_the_map_shows_shares_and_what_is_undefined():
    cells = np.array([[0.0, -0.5, np.nan], [1.0, 0.25, 2.0]], np.float32)
    lines = heat_map(cells, layers=["0", "1"], positions=[4, 5, 9], ink=Ink(0, 80), title="t")
    assert lines[3:5] == [
        f"    0 {' ' * 4}{BLOCKS[2] * 4}{'·' * 4}",
        f"    1 {BLOCKS[4] * 4}{BLOCKS[1] * 4}{BLOCKS[8] * 4}",
    ]
    assert lines[2] == "layer 4       9"
    assert lines[5] == f"scale 0 {BLOCKS} 2.00"
    nothing = heat_map(np.full((1, 2), np.nan, np.float32), layers=["all"], positions=[0, 1], ink=Ink(0, 80), title="t")
    assert nothing[3] == "  all ········"


def on_a_terminal(words: list[str], folder: Path, **environ: str) -> str:
    """What the program writes to a terminal."""
    reader, terminal = os.openpty()
    base = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    with subprocess.Popen(
        [sys.executable, str(ROOT / "cli.py"), *words, "--device", "cpu"],
        stdout=terminal,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        env=base | {"PYTHONIOENCODING": "utf-8", "COLUMNS": "100"} | environ,
    ):
        os.close(terminal)
        written = b""
        while part := _read(reader):
            written += part
    os.close(reader)
    return written.decode()


def _read(reader: int) -> bytes:
    try:
        return os.read(reader, 65536)
    except OSError:  # the other end is closed
        return b""


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no pseudo-terminals here")
@pytest.mark.parametrize(("environ", "found"), [(TERMINAL, "48;2;"), (TERMINAL | {"COLORTERM": ""}, "48;5;")])
def test_a_terminal_shows_colours_and_a_pipe_none(tmp_path, environ, found):
    words = ["--prompt", "The Eiffel Tower is in"]
    assert f"{ESCAPE}{found}" in on_a_terminal(words, tmp_path, **environ)
    bare = on_a_terminal(words, tmp_path, **environ, NO_COLOR="1")
    assert ESCAPE not in bare
    program = [sys.executable, str(ROOT / "cli.py"), *words, "--device", "cpu"]
    env = os.environ | environ | {"FORCE_COLOR": ""}
    piped = subprocess.run(program, cwd=tmp_path, env=env, capture_output=True, check=True).stdout.decode()
    assert piped.splitlines()[:10] == bare.splitlines()[:10]


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no pseudo-terminals here")
def test_a_long_prompt_has_a_map_on_a_terminal(tmp_path):
    words = ["--prompt", "The capital of France is Paris and the river is in France " * 3]
    shown = on_a_terminal(words, tmp_path, **TERMINAL)
    assert "left out" not in shown
    assert f"{ESCAPE}38;2;254;232;56m█" in shown
