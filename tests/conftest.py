"""Shapes and types of everything that handles arrays are checked while the tests run.

The import hook must come before the engine. Modules that take users' arguments are left out: they must meet a wrong
type with an error of their own, which the tests ask for.
"""

from jaxtyping import install_import_hook

CHECKED = (
    *("adoption", "attention", "batches", "decoder", "difference", "distances", "projection", "rotary", "summary"),
    *("sweep", "table", "verification", "walkthrough"),
)
install_import_hook([f"engine.{name}" for name in CHECKED], "beartype.beartype")
