"""The structure keeps its promises: one way of import, nothing at import, small by construction."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ENGINE = Path(__file__).parent.parent / "engine"
ORDER = [
    *("errors", "files", "table", "results"),
    *("cells", "sums", "quantiles", "analysis", "terminal", "report"),
    *("knockouts", "pieces", "prompts"),
    *("difference", "products", "split", "projection", "rotary", "batches", "masks", "causal", "attention"),
    *("decoder", "sweep", "distances", "passes", "capture", "replay"),
    *("families", "angles", "assembly", "adoption", "devices", "demo", "tensors", "sources", "weights", "checkpoints"),
    *("impact", "schedule", "many", "measuring", "experiment", "summary", "walkthrough", "verification", "commands"),
]
"""A module may import what stands before it, and its own folder."""


def imported(path):
    """The engine modules that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from (name.split(".")[1] for name in names if name.startswith("engine."))


def modules():
    for path in sorted(ENGINE.rglob("*.py")):
        if path != ENGINE / "__init__.py":
            yield path.relative_to(ENGINE).parts[0].removesuffix(".py"), path


@pytest.mark.parametrize(("module", "path"), list(modules()), ids=lambda value: getattr(value, "name", value))
def test_imports_go_one_way(module, path):
    assert module in ORDER, f"{module} has no place in the order of the house"
    later = {name for name in imported(path) if name != module and ORDER.index(name) > ORDER.index(module)}
    assert not later, f"{module} imports {sorted(later)}, which stand after it"


def test_the_readme_lists_every_module_in_order():
    readme = (ENGINE.parent / "README.md").read_text(encoding="utf-8")
    listing = readme.split("```\nengine/\n")[1].split("```")[0].split("benchmarks/")[0]
    listed = re.findall(r"\b(\w+)(?:\.py|/)(?=\s)", listing)
    assert listed == ORDER


def test_the_engine_never_imports_benchmarks_or_tests():
    for _, path in modules():
        assert "benchmarks" not in path.read_text().replace("python -m benchmarks", "")


@pytest.mark.parametrize(
    "code",
    [
        "import engine",
        "import engine.commands.run, engine.commands.verify, engine.commands.analyze",
        "import cli",
    ],
)
def test_import_does_nothing(code):
    probe = f"{code}; import sys; print([m for m in ('torch', 'transformers', 'polars', 'numpy') if m in sys.modules])"
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
    for name in ("attention", "rotary", "difference", "products", "split", "projection", "sweep", "decoder", "batches"):
        tree = ast.parse((ENGINE / f"{name}.py").read_text())
        used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not used & forbidden, f"{name} uses {used & forbidden}"


def test_functions_stay_short():
    for _, path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 40, f"{path.name}: {node.name}"
