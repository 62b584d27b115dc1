"""The small files of a checkpoint: config.json and the tokenizer, and what a folder must not hold. Remote code is never
run.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers

from engine.errors import ModelError, is_panic
from engine.model.families import FAMILIES, Family
from engine.model.settings import require_settings
from engine.model.sizes import require_countable

LOCAL = {"trust_remote_code": False, "local_files_only": True}


def family_config(source: str, folder: Path) -> tuple[Family, Any]:
    """The config of a supported family, and that family."""
    raw = read_config(source, folder)
    family = FAMILIES.get(raw["model_type"])
    if family is None:
        raise ModelError(
            f"the architecture {raw['model_type']!r} of {source!r} is not supported on the fused path; "
            f"supported are {', '.join(FAMILIES)}"
        )
    refuse_quantised(source, raw)
    try:
        config = getattr(transformers, family.config).from_dict(raw)
    except Exception as error:
        raise unreadable("config.json", source, error) from error
    require_settings(family, config)
    return family, config


def read_config(source: str, folder: Path) -> dict[str, Any]:
    """The words of config.json, a ``model_type`` (or None) among them. Raises ``ModelError``."""
    try:
        raw, _ = transformers.PreTrainedConfig.get_config_dict(folder, **LOCAL)
        model_type = raw.get("model_type")
        hash(model_type)
        require_countable(raw)
    except Exception as error:  # whatever reading it raises, JSON that is nested too deeply included
        raise unreadable("config.json", source, error) from error
    if not raw:
        raise ModelError(f"{source!r} holds no config.json; give the folder of a transformers checkpoint")
    return {**raw, "model_type": model_type}


def refuse_quantised(source: str, raw: Mapping[str, Any]) -> None:
    """Raise ``ModelError`` where the config says that the weights are quantised."""
    if raw.get("quantization_config"):
        raise ModelError(f"{source!r} is quantised, which is not supported; give the unquantised checkpoint")


def require_plain(source: str, folder: Path) -> None:
    """Raise ``ModelError`` for a folder with an adapter, or without weights in safetensors."""
    if (folder / "adapter_config.json").exists():
        raise ModelError(f"{source!r} holds an adapter beside the model; merge it into the model first")
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{source!r} holds no weights in safetensors; pickled ones (*.bin) are never loaded, convert the checkpoint"
        )


def load_tokenizer(source: str, folder: Path) -> Any:
    """The tokenizer, or None when the folder has none (transformers then makes an empty one up)."""
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **LOCAL)
    except BaseException as error:
        if not (isinstance(error, Exception) or is_panic(error)):
            raise
        if not any(folder.glob("*tok*")) and not any(folder.glob("vocab*")):
            return None
        raise unreadable("the tokenizer", source, error) from error
    return tokenizer if len(tokenizer) > len(tokenizer.added_tokens_decoder) else None


def unreadable(part: str, source: str, error: BaseException) -> ModelError:
    """The error for a part of a checkpoint that transformers cannot read."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return ModelError(f"cannot load {part} of {source!r} ({reason[:300]}); check the checkpoint's files")
