"""The manifest: what made a dataset, what it holds, and whether it is complete. JSON, written whole or not at all."""

import json
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from engine.errors import ResultsError
from engine.files import FilePath, new_file, shown
from engine.questions.saying import differing

MANIFEST = "manifest.json"
FORMAT = "mask-impact dataset"
FORMAT_VERSION = 1
RUNNING, CLEARING, COMPLETE = "unfinished", "being replaced", "complete"
PACKAGES = ("mask-impact", "torch", "transformers", "polars", "numpy")
IDS = ("row numbers", "given")
"""Where the prompts' ids come from."""
COMPARED = ("model", "settings")
"""What must be the same for a run to go on where another stopped."""
QUESTION, SPANS = "question", "spans"
"""Settings: the words of the question, none where they are missing; and the digest of a file of spans."""
UNSAID = {"route": "fused"}
"""What holds where a manifest does not say."""
ROPE_TOLERANCE = 1e-4
"""Rotary tables of two devices differ by rounding; another base or scaling moves their means by more."""

Manifest = dict[str, Any]
SHAPE: dict[str, tuple[str, ...]] = {
    "model": ("name", "layers", "heads"),
    "settings": ("format", "dtype", "device", "ids"),
    "kernel": (),
    "versions": ("torch", "transformers"),
    "counts": (),
    "times": (),
}
"""The objects of a manifest, with the words that others look for in them."""
TEXTS = ("status", "input")


def new_manifest(
    *, model: Mapping[str, Any], settings: Mapping[str, Any], kernel: Mapping[str, Any], source: str, checked: bool
) -> Manifest:
    """The manifest of a run over the prompts in ``source`` that begins; ``checked``: by the self-check at load."""
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "status": RUNNING,
        "model": dict(model),
        "settings": dict(settings),
        "kernel": dict(kernel),
        "checked": checked,
        "versions": versions(),
        "input": source,
        "counts": {},
        "times": {"started": now(), "finished": None, "sessions": []},
    }


def read_manifest(path: Path) -> Manifest | None:
    """The manifest in ``path``; None where there is none. Raises ``ResultsError`` for anything else under that name."""
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise ValueError("it is no manifest of a dataset")
        if found.get("format_version") == FORMAT_VERSION:
            _require_shape(found)
    except (OSError, ValueError, RecursionError) as error:
        raise ResultsError(f"{shown(path)} cannot be read: {error}; choose another folder") from error
    if found.get("format_version") != FORMAT_VERSION:
        raise ResultsError(
            f"{shown(path)} is of format {found.get('format_version')}, this program reads {FORMAT_VERSION}; "
            "use the version of the program that wrote it"
        )
    return found


def _require_shape(found: Manifest) -> None:
    """Raise ``ValueError`` where a part of a manifest is missing, or is not what it must be to be looked at."""
    for part, words in SHAPE.items():
        inside = found.get(part)
        if not isinstance(inside, dict) or any(word not in inside for word in words):
            raise ValueError(f"its {part!r} is missing or incomplete, so it was changed since it was written")
    settings = found["settings"]
    known = settings["format"] in ("parquet", "csv") and settings["ids"] in IDS
    if (
        not known
        or not isinstance(settings.get(QUESTION, {}), dict)
        or not all(isinstance(found.get(word), str) for word in TEXTS)
    ):
        raise ValueError("its settings are none that a run has, so it was changed since it was written")


def recorded_kernel(folder: FilePath) -> dict[str, Any] | None:
    """What the dataset in ``folder`` is computed with, if there is one. Raises ``ResultsError``."""
    found = read_manifest(Path(folder) / MANIFEST)
    return None if found is None else found["kernel"]


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Put the manifest into place. Raises ``ResultsError``."""
    with new_file(path) as file:
        file.write((json.dumps(manifest, ensure_ascii=False, indent=1) + "\n").encode())


def differences(there: Manifest, here: Manifest) -> list[str]:
    """What differs between two runs such that their results must not be mixed, in words."""
    found = []
    other_dtype = there.get("settings", {}).get("dtype") != here["settings"]["dtype"]
    ignored = {"name", "fingerprint"} if other_dtype else {"name"}  # weights in another dtype are other weights
    for part in COMPARED:
        for key in [*here[part], *(key for key in there.get(part, {}) if key not in here[part])]:
            old, new = there.get(part, {}).get(key, UNSAID.get(key)), here[part].get(key)
            if key == QUESTION:
                found += _other_question(old or {}, new or {}, same_spans=there["settings"].get(SPANS) is not None)
            elif not _same(key, old, new) and key not in ignored:
                found.append(f"{part} {key} ({_brief(old)} there, {_brief(new)} here)")
    return found


def _other_question(there: Mapping[str, Any], here: Mapping[str, Any], *, same_spans: bool) -> list[str]:
    """The options in which two questions differ. Files of spans differ by what they hold, wherever they lie."""
    found = differing(there, here)
    if same_spans:
        found = [each for each in found if not all(value.startswith("spans:") for value in each[1:])]
    return [f"{option} ({_brief(old)} there, {_brief(new)} here)" for option, old, new in found]


def now() -> str:
    """The time, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str | None]:
    """The versions at work."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def _same(key: str, old: Any, new: Any) -> bool:
    if key == "rope" and isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return all(abs(a - b) < ROPE_TOLERANCE for a, b in zip(old, new, strict=True))
    return bool(old == new)


def _brief(value: Any) -> str:
    text = "none" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:20]}...{text[-12:]}"


def _version(name: str) -> str | None:
    """The installed version; None where a program runs from a folder without being installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
