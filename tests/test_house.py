"""The structure keeps its promises: one way of import, nothing at import, small by construction."""

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ENGINE = Path(__file__).parent.parent / "engine"
ORDER = [
    *("errors", "files", "sharing", "interrupts", "tables.table", "tables.effects", "tables.columns", "tables.batches"),
    "tables.results",
    *(f"questions.{name}" for name in ("indices", "words", "heads", "question", "saying")),
    *(f"findings.{name}" for name in ("cells", "sums", "quantiles", "analysis", "answers", "terminal", "report")),
    "findings.answers_report",
    *(
        f"findings.{name}"
        for name in ("units", "intervals", "across", "pairing", "comparison", "across_report", "tidy")
    ),
    *(f"text.{name}" for name in ("knockouts", "forks", "plans", "pieces", "chat", "reading", "prompts")),
    *(f"text.{name}" for name in ("characters", "spans", "groups", "rules")),
    *(f"kernels.{name}" for name in ("difference", "norms", "activations", "products", "split", "projection")),
    *(f"kernels.{name}" for name in ("experts", "rotary", "caps", "scores", "batches", "masks", "causal")),
    *("kernels.attention", "kernels.remains", "kernels.shifts", "demo"),
    *(f"model.{name}" for name in ("tensors", "blocks", "streaming", "stored", "view", "mlps", "layer", "ends")),
    *(
        f"model.{name}"
        for name in ("decoder", "families", "settings", "acts", "parts", "assembly", "angles", "adoption")
    ),
    *(f"model.{name}" for name in ("devices", "sizes", "sources", "configs", "modelling", "weights", "streamed")),
    "model.checkpoints",
    *(f"model.{name}" for name in ("borrowing", "handover", "visits", "additions", "foreign", "probing", "catalogue")),
    *("model.loading", "model.fingerprint"),
    *(
        f"sweeps.{name}"
        for name in ("probe", "readout", "variants", "sweep", "relay", "distances", "passes", "capture")
    ),
    *(f"sweeps.{name}" for name in ("replay", "journey", "travelling", "reads", "answers")),
    *(
        f"checks.{name}"
        for name in ("tolerances", "account", "masking", "witness", "lending", "record", "oracles", "gaps")
    ),
    *("checks.selfcheck", "checks.recording"),
    *(f"runs.{name}" for name in ("jobs", "impact", "effect", "labelled", "preparing", "trips", "measuring")),
    *("runs.schedule", "runs.many"),
    *(f"inputs.{name}" for name in ("entries", "fields", "formats", "columnar", "prompt_files", "unique")),
    *(
        f"datasets.{name}"
        for name in ("orders", "shards", "manifest", "receipts", "folder", "locking", "frames", "worker", "blueprint")
    ),
    *(f"datasets.{name}" for name in ("stopping", "feed", "merging", "progress", "production", "reading")),
    *(f"crews.{name}" for name in ("serial", "worker_process", "seat", "processes")),
    *(f"crews.{name}" for name in ("connection", "desk", "actors", "cluster")),
    *("making", "experiment"),
    *(f"figures.{name}" for name in ("sources", "grids", "labels", "scales", "views", "maps", "lists", "charts")),
    "figures.saving",
    *(f"summaries.{name}" for name in ("ink", "heat", "lines", "layers", "answers", "naive")),
    *("summary", *(f"pages.{name}" for name in ("packing", "averages", "prompts", "origin", "measures", "page"))),
    *("walkthrough", "verification", "commands"),
]
"""A module may import what stands before it, and its own folder."""


def place(dotted):
    """The entry of ORDER that a module below ``engine`` belongs to; None for the door of a folder."""
    parts = dotted.split(".")
    return next((".".join(parts[:n]) for n in (1, 2) if ".".join(parts[:n]) in ORDER), None)


def imported(path):
    """The entries of ORDER that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found = {place(name.removeprefix("engine.")) for name in names if name.startswith("engine.")}
        yield from found - {None}


def modules():
    doors = {ENGINE / "__init__.py", *(ENGINE / entry.split(".")[0] / "__init__.py" for entry in ORDER if "." in entry)}
    for path in sorted(ENGINE.rglob("*.py")):
        if path not in doors:
            dotted = ".".join(path.relative_to(ENGINE).with_suffix("").parts)
            yield place(dotted) or dotted, path


@pytest.mark.parametrize(("module", "path"), list(modules()), ids=lambda value: getattr(value, "name", value))
def test_imports_go_one_way(module, path):
    assert module in ORDER, f"{module} has no place in the order of the house"
    later = {name for name in imported(path) if name != module and ORDER.index(name) > ORDER.index(module)}
    assert not later, f"{module} imports {sorted(later)}, which stand after it"


def test_the_readme_lists_every_module_in_order():
    readme = (ENGINE.parent / "README.md").read_text(encoding="utf-8")
    listing = readme.split("```\nengine/\n")[1].split("```")[0].split("benchmarks/")[0]
    listed, folder = [], ""
    for line in listing.splitlines():
        folder = folder if line.startswith("    ") else ""
        names = re.findall(r"\b(\w+)(?:\.py|/)(?=\s)", line)
        if names and names[0] in {entry.split(".")[0] for entry in ORDER if "." in entry} and not folder:
            folder = f"{names.pop(0)}."
        listed += [folder + name for name in names]
    assert listed == ORDER


def test_the_engine_never_imports_benchmarks_or_tests():
    for _, path in modules():
        assert "benchmarks" not in path.read_text().replace("python -m benchmarks", "")


@pytest.mark.parametrize(
    "code",
    [
        "import engine",
        "import engine.commands.prompt_set, engine.commands.run, engine.commands.verify, engine.commands.analyze, "
        "engine.commands.plot, engine.commands.report",
        "import cli",
    ],
)
def test_import_does_nothing(code):
    heavy = ("torch", "transformers", "polars", "numpy", "altair")
    probe = f"{code}; import sys; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, cwd=ENGINE.parent, check=True)
    assert out.stdout.strip() == "[]"


def test_public_names_are_loaded_when_used():
    import engine

    assert set(engine.__all__) <= set(dir(engine))
    assert all(getattr(engine, name).__module__.startswith("engine.") for name in engine.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = engine.nothing


def test_kernels_name_their_axes():
    """Shapes are changed by einops patterns, not by positions of axes."""
    forbidden = {"view", "transpose", "permute", "swapaxes", "unsqueeze", "squeeze"}
    for path in (*(ENGINE / "kernels").glob("*.py"), ENGINE / "model" / "decoder.py", ENGINE / "sweeps" / "sweep.py"):
        used = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        assert not used & forbidden, f"{path.name} uses {used & forbidden}"


def test_functions_stay_short():
    for _, path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 40, f"{path.name}: {node.name}"


def test_a_wheel_holds_every_file_of_the_engine(tmp_path):
    """Packages are listed by hand, and a module that is not in a wheel is missed only after installation."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ENGINE.parent / name, tmp_path)
    shutil.copytree(ENGINE, tmp_path / "engine", ignore=shutil.ignore_patterns("__pycache__"))
    script = "from setuptools import build_meta; build_meta.build_wheel('.')"
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    needed = [path for path in (tmp_path / "engine").rglob("*") if path.is_file() and path.suffix != ".md"]
    assert {path.relative_to(tmp_path).as_posix() for path in needed} <= held
