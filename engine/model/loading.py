"""A model by its name, on its route: described families go the fused one, all others run their own layers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from engine.errors import ModelError
from engine.model.adoption import adopt, family_of
from engine.model.catalogue import refusal
from engine.model.checkpoints import load_decoder
from engine.model.configs import load_tokenizer, read_config, refuse_quantised, require_plain
from engine.model.devices import host_by_default, memory_errors, resolve_device, resolve_dtype
from engine.model.families import FAMILIES
from engine.model.modelling import load_module
from engine.model.probing import adopt_foreign
from engine.model.sources import find_folder, quiet
from engine.model.view import View

ROUTES = ("auto", "fused", "generic")


def load_view(
    name: str | Path | None,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "float32",
    route: str = "auto",
    stream: bool = False,
    device_map: str | None = None,
) -> tuple[View, Any]:
    """As ``load_decoder``, for every architecture. ``route``: auto, fused (described families alone) or generic.

    On the generic route the model computes in ``dtype`` as transformers does, bfloat16 included.
    """
    require_route(route)
    resolve_dtype(dtype, resolve_device(device))
    with quiet():
        folder = find_folder(name)
        source = str(folder if name is None else name)
        raw = read_config(source, folder)
    if route == "fused" or (route == "auto" and raw["model_type"] in FAMILIES):
        place: dict[str, Any] = {"device": device, "stream": stream, "device_map": device_map}
        return load_decoder(name, dtype=dtype, folder=folder, **place)
    _refuse_placement(source, stream=stream, device_map=device_map)
    there = resolve_device(device)
    with quiet(), memory_errors(there):
        model = _load_model(source, folder, raw, resolve_dtype(dtype, there)).to(there).eval()
        return adopt_foreign(model), load_tokenizer(source, folder)


def _refuse_placement(source: str, *, stream: bool, device_map: str | None) -> None:
    """A model that runs its own layers wants all of them on one device."""
    if stream or device_map is not None:
        raise ModelError(
            f"{source!r} runs its own layers (the generic route), which cannot be "
            f"{'streamed' if stream else 'laid out over devices'}; families of the fused route can, see `models`"
        )


def view_of(model: Any, *, route: str = "auto") -> View:
    """The view on a transformers model in memory. Raises ``ModelError`` where the route does not lead to one."""
    require_route(route)
    with host_by_default():
        if route == "fused" or (route == "auto" and _is_described(model)):
            return adopt(model)
        return adopt_foreign(model)


def require_route(route: object) -> None:
    """Raise ``ModelError`` for a route that there is not."""
    if route not in ROUTES:
        raise ModelError(f"there is no route {route!r}; choose {', '.join(ROUTES)}")


def _is_described(model: Any) -> bool:
    try:
        family_of(model)
    except ModelError:
        return False
    return True


def _load_model(source: str, folder: Path, raw: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """The transformers model, all of its weights read and no others. Raises ``ModelError``."""
    reason = refusal(raw["model_type"])
    if reason is not None:
        raise ModelError(
            f"the architecture {raw['model_type']!r} of {source!r} is not supported: {reason}; "
            "the command `models` lists what is"
        )
    refuse_quantised(source, raw)
    require_plain(source, folder)
    model, told = load_module("AutoModelForCausalLM", folder, source, dtype=dtype)
    _require_whole(source, told)
    return model


def _require_whole(source: str, told: Mapping[str, Any]) -> None:
    """transformers fills what is missing with random numbers, and leaves out what it has no place for."""
    missing = sorted(map(str, {*told["missing_keys"], *told["mismatched_keys"]}))
    if missing:
        raise ModelError(
            f"the checkpoint {source!r} is incomplete: {len(missing)} weights are missing or misshapen, "
            f"first {missing[0]}; download it again"
        )
    foreign = sorted(map(str, told["unexpected_keys"]))
    if foreign:
        raise ModelError(
            f"the checkpoint {source!r} holds {len(foreign)} weights that its config.json does not account for, "
            f"first {foreign[0]}; it is adapted, quantised or of another architecture"
        )
