"""What a stranger's model, dataset or input could do: nothing but be read.

A hook of the interpreter (``sys.addaudithook``) watches whole runs in a process of their own: it hears of everything
that is unpickled, started, connected or run as a command, whoever does it.
"""

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import torch

from engine import AttentionMasker, read_results
from engine.commands import main
from engine.errors import ModelError, ResultsError

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "engine" / "demo" / "model"
PROMPT = "The Eiffel Tower is in"
LIBRARIES = "/sbin/ldconfig"
"""What Python asks where the system keeps its libraries; torch's builds for CUDA do."""
WATCHED = """
import json, os, sys
heard = []
FORBIDDEN = ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "os.fork",
             "socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.bind")

def hear(event, arguments):
    if event in FORBIDDEN:
        heard.append([event, str(arguments)[:200]])

sys.addaudithook(hear)
from engine.commands import main
statuses = [main(words) for words in json.loads(sys.argv[1])]
print(json.dumps({"statuses": statuses, "heard": heard, "modules": sorted(sys.modules)}))
"""


def watched(commands, place, *, wall=()):
    """What was heard while these commands ran in one process; ``wall`` is a command that starts it apart."""
    words = [*wall, sys.executable, "-c", WATCHED, json.dumps(commands)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(words, cwd=place, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found["statuses"]) == {0}, done.stderr
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder that holds a model, and beside it everything that must not be run."""
    folder = tmp_path_factory.mktemp("hostile") / "model"
    shutil.copytree(DEMO, folder)
    mark = folder.parent / "mark"
    code = f"open({str(mark)!r}, 'w').close()"
    (folder / "hostile.py").write_text(code + "\nclass Model: pass\nclass Config: pass\nclass Tokenizer: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "hostile.Config", "AutoModelForCausalLM": "hostile.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    words = json.loads((folder / "tokenizer_config.json").read_text())
    words["auto_map"] = {"AutoTokenizer": ["hostile.Tokenizer", "hostile.Tokenizer"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(words))
    torch.save(Running(mark), folder / "pytorch_model.bin")
    torch.save(Running(mark), folder / "training_args.bin")
    return folder


class Running:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


def commands_on(model):
    """Every command that reads or writes something, one after the other."""
    given = ["--model", str(model), "--device", "cpu"]
    return [
        ["--prompt", PROMPT, *given, "--output", "table.parquet", "--report", "page.html"],
        ["--prompt", PROMPT, *given, "--route", "generic", "--output", "generic.csv"],
        ["--prompt", PROMPT, "--device", "cpu", "--output", "demo.jsonl", "--stream"],
        ["verify", "--prompt", PROMPT, *given],
        ["--prompts", "prompts.txt", *given, "--output", "set"],
        ["analyze", "set"],
        ["analyze", "table.parquet", "--json"],
        ["report", "set", "--output", "set.html"],
        *([["plot", "table.parquet", "--output", "map.svg"]] if _has_altair() else []),
    ]


def _has_altair():
    from importlib.util import find_spec

    return find_spec("altair") is not None and find_spec("vl_convert") is not None


def test_nothing_is_unpickled_run_or_connected(model, tmp_path):
    """The same where the system has no network at all, if it lets us take it away."""
    (tmp_path / "prompts.txt").write_text("The Eiffel Tower is in\nThe capital of France is\n")
    wall = ("unshare", "-rn") if _can_unshare() else ()
    found = watched(commands_on(model), tmp_path, wall=wall)
    assert [each for each in found["heard"] if LIBRARIES not in each[1]] == []
    assert not (model.parent / "mark").exists()
    assert not any("hostile" in name for name in found["modules"])


def _can_unshare():
    words = ["unshare", "-rn", "true"]
    return shutil.which("unshare") is not None and subprocess.run(words, capture_output=True).returncode == 0


def test_a_pickle_by_the_name_of_safetensors_is_refused(model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    torch.save(Running(tmp_path / "mark"), folder / "model.safetensors")
    with pytest.raises(ModelError, match="damaged or cut off"):
        AttentionMasker.from_pretrained(folder, device="cpu")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="never loaded"):
        AttentionMasker.from_pretrained(folder, device="cpu")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('touch mark') }}",
        "{% for i in range(10**12) %}x{% endfor %}",
        "{{ messages.append(1) }}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_a_hostile_chat_template_is_refused(monkeypatch, capsys, model, tmp_path, template):
    """transformers runs templates in a sandbox; what that forbids is one line."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    words = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(words | {"chat_template": template}))
    assert main(["--prompt", PROMPT, "--chat", "--model", str(folder), "--device", "cpu"]) == 2
    assert "chat template" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


HOSTILE_IDS = (
    *"../../outside",
    "/etc/outside",
    "a/../../b",
    "C:\\outside",
    "..",
    ".",
    "nul\x00",
    "-rf",
    "~",
    "$HOME",
    "a\nb",
)


@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_ids_are_data_and_never_paths(tmp_path, form):
    prompts = dict.fromkeys(HOSTILE_IDS, PROMPT)
    folder = tmp_path / "around" / "set"
    AttentionMasker.from_pretrained(device="cpu").run_dataset(prompts, folder, form=form)
    assert [path.name for path in tmp_path.iterdir()] == ["around"]
    assert [path.name for path in (tmp_path / "around").iterdir()] == ["set"]
    names = {path.name.split("-")[0].split(".")[0] for path in folder.rglob("*") if path.is_file()}
    assert names <= {"manifest", "part", "prompts", "tokens", "receipts", "", "lock", "rejected"}
    assert set(read_results(folder).collect()["prompt_id"].unique()) == set(HOSTILE_IDS)


@pytest.mark.parametrize("name", ["impacts", ".unfinished", "manifest.json", ".lock"])
def test_links_in_a_dataset_are_not_followed_when_it_is_written(tmp_path, name):
    treasure = tmp_path / "treasure"
    treasure.mkdir()
    (treasure / "part-000000.parquet").write_text("mine")
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / name).symlink_to(treasure if name in ("impacts", ".unfinished") else treasure / "part-000000.parquet")
    with pytest.raises(ResultsError, match="link"):
        AttentionMasker.from_pretrained(device="cpu").run_dataset([PROMPT], folder, overwrite=True)
    assert (treasure / "part-000000.parquet").read_text() == "mine"


FORMULAS = ("=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", '=HYPERLINK("http://x","y")')


def test_tables_keep_texts_as_they_are(tmp_path):
    """A results file is data, and comes back as it was; the README says what a spreadsheet does with it."""
    masker = AttentionMasker.from_pretrained(device="cpu")
    for number, text in enumerate(FORMULAS):
        table, file = masker.run(f"{text} is in"), tmp_path / f"{number}.csv"
        tokens = table.filter(pl.col("layer") == 0, pl.col("variant") == "Full")["token_masked"]
        assert "".join(tokens) == f"{text} is in"
        table.write_csv(file)
        assert pl.read_csv(file)["token_masked"].to_list() == table["token_masked"].to_list()


@pytest.mark.skipif(os.name != "posix", reason="permissions")
@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_files_have_the_permissions_that_the_user_wants(monkeypatch, tmp_path, mask):
    monkeypatch.chdir(tmp_path)
    before = os.umask(mask)
    try:
        assert main(["--prompt", PROMPT, "--device", "cpu", "--quiet", "--report", "page.html"]) == 0
        AttentionMasker.from_pretrained(device="cpu").run_dataset([PROMPT], "set")
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"]
    assert len(files) > 5
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o666 & ~mask}


def test_nothing_is_left_in_the_shared_folder_for_temporary_files(monkeypatch, tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "prompts.txt").write_text(PROMPT)
    given = ["--device", "cpu", "--quiet"]
    commands = [
        ["--prompt", PROMPT, *given, "--output", "table.parquet", "--report", "page.html"],
        ["--prompts", "prompts.txt", *given, "--output", "set"],
        ["analyze", "table.parquet"],
    ]
    monkeypatch.setenv("TMPDIR", str(tmp_path / "shared"))
    watched(commands, tmp_path)
    assert [*(tmp_path / "shared").iterdir()] == []
