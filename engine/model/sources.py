"""Where a checkpoint comes from: the name of a folder, or of a model on the hub, becomes a local folder."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import transformers
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import logging as hub_logging

from engine.demo import demo_folder
from engine.errors import ImpactError, ModelError
from engine.model.tensors import INDEX, weight_files
from engine.sharing import Shared

HUB_TIMEOUT_S = 10
SMALL_FILES = (
    *("config.json", "adapter_config.json", INDEX),
    *("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "tekken.json"),
)
"""What is downloaded besides the weights that the index names: no pickled ones, and none of the copies in other formats
that many models carry along."""


def find_folder(name: str | Path | None) -> Path:
    """The folder of the checkpoint: None is the embedded model, one on the hub is downloaded or taken from the cache.

    Raises ``ModelError`` when there is no such folder and no such model.
    """
    source = _checked(demo_folder() if name is None else name)
    if isinstance(source, Path):
        return source
    try:
        offline = not _hub_answers(source)
        folder = Path(snapshot_download(source, allow_patterns=list(SMALL_FILES), local_files_only=offline))
        weights = [file.name for file in weight_files(folder)]
        return Path(snapshot_download(source, allow_patterns=weights, local_files_only=offline))
    except ImpactError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"cannot load {source!r} ({reason}); check the id and the network, or give a local folder"
        ) from error


def _checked(name: str | Path) -> str | Path:
    """A path if the name is that of a folder, text if it may be a hub id."""
    if not isinstance(name, str | Path):
        raise ModelError(
            f"a model is a folder or a hub id, not a {type(name).__name__}; AttentionMasker takes a loaded one"
        )
    path = Path(name).expanduser()
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except (OSError, ValueError):
        is_folder = exists = False
    if str(name) and is_folder:
        return path
    if str(name) and exists:
        raise ModelError(f"{str(name)!r} is a file; give the folder that holds config.json and the safetensors")
    parts = str(name).split("/")
    if (
        isinstance(name, Path)
        or len(str(name)) > 200
        or len(parts) > 2
        or not all(parts)
        or parts[0] in (".", "..", "~")
        or "\\" in str(name)
    ):
        raise ModelError(f"there is no model folder {str(name)!r}; give an existing folder or a hub id (owner/name)")
    return name


def _hub_answers(source: str) -> bool:
    """Whether the hub can be reached; if not, its cache on this machine must do, without minutes of retries."""
    try:
        HfApi().model_info(source, timeout=HUB_TIMEOUT_S)
    except HfHubHTTPError:
        return True
    except Exception:
        return False
    return True


@contextmanager
def _quieted() -> Iterator[None]:
    log, hub = transformers.utils.logging, hub_logging
    verbosity, hub_verbosity, bars = log.get_verbosity(), hub.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity(logging.CRITICAL)
    hub.set_verbosity(logging.CRITICAL)
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        hub.set_verbosity(hub_verbosity)
        if bars:
            log.enable_progress_bar()


quiet = Shared(_quieted)
"""Keeps the libraries' progress bars and warnings off the terminal while loading; everything is checked here."""
