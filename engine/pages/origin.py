"""What produced the results, as lines of a page: a name and a text each."""

import json
import shlex
from collections.abc import Mapping
from typing import Any

from engine.questions.saying import spoken

KNOWN = (
    "description",
    "model",
    "layers",
    "heads",
    "route",
    "dtype",
    "device",
    "prompt",
    "prompts",
    "question",
    "checked",
    "manifest",
)
"""Entries of a provenance that have a line of their own; the others follow by their names."""
UNKNOWN = [
    ("Origin", "the file does not say; Parquet files and datasets keep what produced them, CSV and JSON lines do not")
]


def origin_lines(provenance: Mapping[str, Any], *, is_set: bool) -> list[tuple[str, str]]:
    """Model, shape, prompt, question, the command that asks it again, versions; in the order of the page."""
    if not provenance:
        return UNKNOWN
    versions = [(name.replace("_", "-"), _text(value)) for name, value in provenance.items() if name not in KNOWN]
    manifest = provenance.get("manifest")
    lines = [
        ("Model", _text(provenance.get("description") or provenance.get("model"))),
        ("Shape", f"{_text(provenance.get('layers'))} layers × {_text(provenance.get('heads'))} heads"),
        ("Numbers", f"{_text(provenance.get('dtype'))} on {_text(provenance.get('device'))}{_route(provenance)}"),
        *_check(provenance),
        ("Prompts" if is_set else "Prompt", _text(provenance.get("prompt"))),
        ("Question", _question(provenance) or "each layer on its own, hidden from all queries, read in the layer"),
        ("Command", _command(provenance)),
        *versions,
    ]
    return lines + (_of_manifest(manifest) if isinstance(manifest, Mapping) else [])


def _of_manifest(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a dataset knows beyond a single file."""
    known = {
        "Fingerprint": ("model", "fingerprint"),
        "Started": ("times", "started"),
        "Finished": ("times", "finished"),
    }
    found = [(name, manifest.get(part, {}).get(key)) for name, (part, key) in known.items()]
    return [(name, _text(value)) for name, value in found if value]


def _command(provenance: Mapping[str, Any]) -> str:
    """The command line that measures the same again, as far as the results tell."""
    words = ["python", "cli.py"]
    manifest = provenance.get("manifest")
    if isinstance(manifest, Mapping):
        words += ["--prompts", _text(manifest.get("input"))]
        model = manifest.get("model", {}).get("name")
    else:
        words += ["--prompt", _text(provenance.get("prompt"))]
        model = provenance.get("model")
    if model and not str(model).startswith("embedded"):
        words += ["--model", _text(model)]
    words += ["--dtype", _text(provenance.get("dtype"))] if provenance.get("dtype") != "float32" else []
    return " ".join([shlex.join(words), _question(provenance)]).strip()


def _question(provenance: Mapping[str, Any]) -> str:
    """The question in the words of the command line; what is no question, as it stands."""
    words = provenance.get("question")
    if not isinstance(words, Mapping):
        return ""
    try:
        return spoken(words)
    except (TypeError, ValueError, AttributeError, KeyError):
        return _text(words)


def _route(provenance: Mapping[str, Any]) -> str:
    return f", {_text(provenance['route'])} route" if provenance.get("route") else ""


def _check(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Whether the engine was held against transformers when the model was loaded, where the results tell."""
    manifest = provenance.get("manifest")
    checked = provenance.get("checked", manifest.get("checked") if isinstance(manifest, Mapping) else None)
    said = {True: "the engine agreed with transformers when the model was loaded", False: "skipped (--no-check)"}
    return [("Self-check", said[checked])] if isinstance(checked, bool) else []


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "not said" if value is None else json.dumps(value, default=str)
