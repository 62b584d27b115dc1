"""Shapes and types of everything that handles arrays are checked while the tests run.

The import hook must come before the engine. Modules that take users' arguments are left out: they must meet a wrong
type with an error of their own, which the tests ask for.
"""

import os
from pathlib import Path

import attacks
import pytest
from jaxtyping import install_import_hook

if "PYTEST_XDIST_WORKER" in os.environ:  # a process for every core: more threads would wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

ENGINE = Path(__file__).parent.parent / "engine"
CHECKED = (
    "kernels",
    "sweeps",
    "model",
    "runs",
    "tables",
    "findings",
    "summaries",
    "summary",
    "walkthrough",
    "verification",
)
PROTOCOLS = ("sweeps.capture", "sweeps.replay", "runs.schedule")
"""They name protocols, which cannot be checked at run time."""
ARGUMENTS = ("model.checkpoints", "model.loading", "model.devices", "model.sources", "model.assembly")
"""They take what users name, and stand-ins for tensors that are still in their files."""
TYPES = ("tables.columns", "tables.effects")
"""They handle types of polars, which the checker does not understand."""
EXCEPT = (*PROTOCOLS, *ARGUMENTS, *TYPES)


def checked_modules():
    """The modules of ``CHECKED``, by the names that they are imported by."""
    paths = (path for name in CHECKED for path in sorted({*ENGINE.glob(f"{name}.py"), *(ENGINE / name).rglob("*.py")}))
    names = (".".join(path.relative_to(ENGINE).with_suffix("").parts) for path in paths)
    return [f"engine.{name}" for name in names if name not in EXCEPT and not name.endswith("__init__")]


install_import_hook(checked_modules(), "beartype.beartype")


def pytest_addoption(parser):
    """How many random attacks run, and where their number is noted."""
    parser.addoption("--attacks", choices=("quick", "deep"), default="quick", help="how many random cases")
    parser.addoption("--tally", metavar="FILE", help="add the number of random cases of each kind to this file")


def pytest_configure(config):
    """Before tests are collected: their decorators ask for the number of cases."""
    attacks.MODE["deep"] = config.getoption("--attacks") == "deep"


def pytest_unconfigure(config):
    """After the last test."""
    if config.getoption("--tally"):
        attacks.write_tally(config.getoption("--tally"))


@pytest.fixture
def one_thread():
    """Tiny products gain nothing from threads, and wait for them when the machine is busy."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
