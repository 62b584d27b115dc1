"""Shapes and types of everything that handles arrays are checked while the tests run.

The import hook must come before the engine. Modules that take users' arguments are left out: they must meet a wrong
type with an error of their own, which the tests ask for.
"""

import pytest
from jaxtyping import install_import_hook

CHECKED = (
    *("adoption", "angles", "attention", "batches", "causal", "decoder", "difference", "distances", "masks", "passes"),
    *("projection", "rotary", "split", "summary", "sweep", "table", "verification", "walkthrough"),
)
install_import_hook([f"engine.{name}" for name in CHECKED], "beartype.beartype")


@pytest.fixture
def one_thread():
    """Tiny products gain nothing from threads, and wait for them when the machine is busy."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
