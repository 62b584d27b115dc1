"""A figure and a page along with the table, by the main command."""

import subprocess
import sys
from pathlib import Path

import pytest

CLI = Path(__file__).parent.parent / "cli.py"
PROMPT = "The Eiffel Tower is in"


def cli(*arguments, folder):
    command = [sys.executable, str(CLI), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_a_prompt_with_its_figure_and_page(tmp_path):
    done = cli("--prompt", PROMPT, "--plot", "map.svg", "--report", "page.html", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["heat map -> map.svg", "page -> page.html"]
    assert "Eiffel" in (tmp_path / "map.svg").read_text()
    page = (tmp_path / "page.html").read_text()
    assert "embedded demo model" in page, "the page says what produced it though the CSV cannot"
    assert (tmp_path / "mask_impact.csv").exists()


def test_a_set_with_its_page(tmp_path):
    (tmp_path / "prompts.txt").write_text(f"{PROMPT}\nThe Colosseum is in\n")
    done = cli("--prompts", "prompts.txt", "--output", "set", "--report", "page.html", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "page -> page.html"
    assert "Colosseum" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--prompt", PROMPT, "--plot", "map.gif"), "no suffix of a figure"),
        (("--prompt", PROMPT, "--report", "page.pdf"), "no suffix of a page"),
        (("--prompt", PROMPT, "--report", "no/page.html"), "no/page.html"),
        (("--prompts", "prompts.txt", "--plot", "map.svg"), "--plot draws one prompt"),
    ],
)
def test_mistakes_are_told_before_any_work(arguments, said, tmp_path):
    (tmp_path / "prompts.txt").write_text(f"{PROMPT}\n")
    done = cli(*arguments, folder=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.txt"]
