"""Shapes and types of the engine are checked while the tests run: the import hook must come before the engine."""

from jaxtyping import install_import_hook

install_import_hook("engine", "beartype.beartype")
