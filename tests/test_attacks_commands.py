"""Command lines of any words: done, or refused in one line with exit code 2, and never a traceback or half a file."""

import pytest
from attacks import attack
from hostile import survives
from hypothesis import given
from hypothesis import strategies as st

VALUES = (
    *(
        "0",
        "1",
        "-1",
        "2-1",
        "0-3",
        "99999999999999999999",
        "1,,2",
        "a",
        "",
        " ",
        "1.5",
        "nan",
        "-",
        "--",
        "é",
        "\x00",
        "\udcff",
    ),
    *("cpu", "cuda", "cuda:9", "cuda:-1", "meta", "float32", "float16", "int8", "bfloat16", "auto", "fused", "generic"),
    *(
        "layer",
        "window:2",
        "window:0",
        "window:-1",
        "window:x",
        "all",
        "others",
        "query",
        "output",
        "last",
        "3,5",
        "1:0",
    ),
    *(
        "tokens",
        "words",
        "regex:[",
        "regex:Tower",
        "chars:0-4",
        "chars:9-1",
        "positions:1+2",
        "spans:nothing.csv",
        "value-zero",
    ),
    *(
        "MLP",
        "MLP,Resid",
        "attention_mass",
        "token_id,nothing",
        "nowhere/x.csv",
        "x.csv",
        "x.parquet",
        "x.jsonl",
        "x.txt",
    ),
    *(
        "x.png",
        "x.html",
        "..",
        "/",
        "prompts.txt",
        "table.csv",
        "config.json",
        "a" * 5_000,
        "%s",
        "{0}",
        "\n",
        " Paris",
    ),
)
PROMPTS = ("The Eiffel Tower is in", "", "x", "\ud800", "The " * 600, "Paris")
OPTIONS = {
    "run": (
        *("--prompt", "--prompts", "--layers", "--tokens", "--output", "--model", "--device", "--dtype", "--route"),
        *("--read", "--cut", "--hidden-from", "--query", "--mask", "--heads", "--intervention", "--sites", "--columns"),
        *("--answer", "--system", "--limit", "--format", "--prompt-column", "--id-column", "--report", "--plot"),
        *("--device-map", "--nothing", "-h"),
    ),
    "verify": ("--prompt", "--layer", "--token", "--samples", "--seed", "--model", "--device", "--dtype", "--nothing"),
    "analyze": ("--json", "--top", "--by", "--output", "--min-count", "--bootstrap", "--seed", "--among", "--nothing"),
    "report": ("--output", "--prompts", "--prompt-ids", "--nothing"),
    "models": ("--json", "--nothing"),
}
FLAGS = (
    "--quiet",
    "--stream",
    "--chat",
    "--skip-special",
    "--overwrite",
    "--resume",
    "--no-check",
    "--json",
    "--skip-first",
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """A folder with a table and some prompts, in which the commands run."""
    folder = tmp_path_factory.mktemp("commands")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "prompts.txt").write_text("The Eiffel Tower is in\nParis is\n")
        survives(["--prompt", "The Eiffel Tower is in", "--output", "table.csv", "--device", "cpu"], folder)
        yield folder


@st.composite
def command_lines(draw):
    """The words of one command: most of them options that it has, with values that it may have."""
    name = draw(st.sampled_from(("run", "run", "run", *OPTIONS)))
    words = [] if name == "run" else [name]
    if name in ("analyze", "report"):
        words.append(draw(st.sampled_from(("table.csv", "table.csv", "prompts.txt", "nothing.csv", ".", ""))))
    if name == "run" and draw(st.integers(0, 9)):
        words += ["--prompt", draw(st.sampled_from(PROMPTS)), "--device", "cpu"]
    for option in draw(st.lists(st.sampled_from(OPTIONS[name]), max_size=4)):
        words += [option, draw(st.sampled_from(VALUES))] if draw(st.integers(0, 9)) else [option]
    return words + draw(st.lists(st.sampled_from(FLAGS), max_size=2))


@given(command_lines())
@attack("command lines", quick=20, deep=3000)
def test_any_command_line_is_done_or_refused(elsewhere, words):
    kept = {path.name for path in elsewhere.iterdir()}
    survives(words, elsewhere, allowed=(0, 1, 2) if "verify" in words else (0, 2))
    for path in elsewhere.iterdir():
        if path.name not in kept and path.is_file():
            path.unlink()
