"""Loading of models and tokenizers through native transformers: safetensors only, never remote code."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import logging as hub_logging
from torch import nn

from engine.demo import demo_folder
from engine.devices import memory_errors, resolve_device, resolve_dtype
from engine.errors import ModelError
from engine.families import FAMILIES, Family

HUB_TIMEOUT_S = 10
HEADER_LIMIT_BYTES = 100_000_000
PLAIN_DTYPES = ("F64", "F32", "F16", "BF16")


def load_model(
    name: str | Path | None, *, device: str | torch.device = "auto", dtype: str | torch.dtype = "float32"
) -> tuple[nn.Module, Any]:
    """The model in ``dtype`` on ``device``, and its tokenizer (None when the folder has none).

    ``name`` is a local folder or a hub id; None is the embedded model. Raises ``ModelError`` when there is no such
    model, when it is of an unsupported family, or when its files are broken, incomplete, pickled or quantised;
    ``DeviceError`` for the device and the dtype.
    """
    place = resolve_device(device)
    kind = resolve_dtype(dtype, place)
    source = str(demo_folder() if name is None else _checked(name))
    with _quiet():
        origin = {"trust_remote_code": False, "local_files_only": _is_local(source) or not _hub_answers(source)}
        family = _family(source, origin)
        _refuse_narrow_weights(source, origin)
        with memory_errors(place):
            model = _load_weights(source, family, kind, origin).to(place).eval()
        return model, _load_tokenizer(source, origin)


def _checked(name: str | Path) -> str | Path:
    """The name, if it is a folder or may be a hub id."""
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


def _family(source: str, origin: dict[str, bool]) -> Family:
    """The family that the checkpoint's config names."""
    try:
        config, _ = transformers.PreTrainedConfig.get_config_dict(source, **origin)
        model_type = config.get("model_type")
        FAMILIES.get(model_type)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(_cannot_load(source, "config.json", error)) from error
    if not config:
        raise ModelError(f"{source!r} holds no config.json; give the folder of a transformers checkpoint")
    if model_type not in FAMILIES:
        raise ModelError(
            f"the architecture {model_type!r} of {source!r} is not supported; supported are {', '.join(FAMILIES)}"
        )
    if config.get("quantization_config"):
        raise ModelError(f"{source!r} is quantised, which is not supported; give the unquantised checkpoint")
    return FAMILIES[model_type]


def _load_weights(source: str, family: Family, dtype: torch.dtype, origin: dict[str, bool]) -> nn.Module:
    architecture = getattr(transformers, family.architecture)
    try:
        model, info = architecture.from_pretrained(
            source, dtype=dtype, use_safetensors=True, output_loading_info=True, **origin
        )
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            raise
        raise ModelError(_cannot_load(source, "the weights", error)) from error
    _refuse_other_weights(source, info)
    return model


def _refuse_other_weights(source: str, info: dict[str, Any]) -> None:
    """transformers fills what is missing with random numbers and drops what it does not know; either would be wrong."""
    lacking = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if lacking:
        raise ModelError(
            f"the checkpoint {source!r} is incomplete: {len(lacking)} weights are missing or misshapen, "
            f"first {lacking[0]}; download it again"
        )
    foreign = sorted(key for key in info["unexpected_keys"] if not key.endswith("rotary_emb.inv_freq"))
    if foreign:
        raise ModelError(
            f"the checkpoint {source!r} holds {len(foreign)} weights that its config.json does not account for, "
            f"first {foreign[0]}; it is adapted, quantised or of another architecture"
        )


def _refuse_narrow_weights(source: str, origin: dict[str, bool]) -> None:
    """Integers and 8-bit floats are the storage of quantised weights, whatever the config says."""
    folder = Path(transformers.utils.cached_file(source, "config.json", **origin)).parent
    for file in sorted(folder.glob("*.safetensors")):
        for name, dtype in stored_dtypes(file).items():
            if dtype not in PLAIN_DTYPES:
                raise ModelError(
                    f"weight {name} of {source!r} is stored as {dtype}, a quantised format, which is not supported; "
                    "give the unquantised checkpoint"
                )


def stored_dtypes(file: Path) -> dict[str, str]:
    """The dtype of every tensor in a safetensors file, by its header alone. Broken headers name no tensor."""
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        text = stream.read(size) if size < HEADER_LIMIT_BYTES else b""
    try:
        header = json.loads(text)
        return {name: entry["dtype"] for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}


def _load_tokenizer(source: str, origin: dict[str, bool]) -> Any:
    """The tokenizer, or None when the checkpoint has none (transformers then makes an empty one up)."""
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **origin)
    except Exception as error:
        if _is_local(source) and not any(Path(source).glob("*tok*")) and not any(Path(source).glob("vocab*")):
            return None
        raise ModelError(_cannot_load(source, "the tokenizer", error)) from error
    return tokenizer if len(tokenizer) > len(tokenizer.added_tokens_decoder) else None


def _cannot_load(source: str, part: str, error: Exception) -> str:
    """One line on what could not be read, and what to do about it."""
    reason = " ".join(str(error).split()) or type(error).__name__
    advice = "check the folder" if _is_local(source) else "check the id and the network, or give a local folder"
    if _is_local(source) and any(Path(source).glob("*.bin")) and not any(Path(source).glob("*.safetensors")):
        advice = "pickled weights (*.bin) are never loaded; convert the checkpoint to safetensors"
    return f"cannot load {part} of {source!r} ({reason[:300]}); {advice}"


def _is_local(source: str) -> bool:
    return Path(source).is_dir()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the libraries' progress bars and warnings off the terminal while loading; everything is checked here."""
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
