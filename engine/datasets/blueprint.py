"""What a dataset is made with: the model, the settings and the kernel, as its manifest and its workers are told."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.datasets.manifest import QUESTION, SPANS, Manifest, new_manifest
from engine.datasets.orders import Order
from engine.datasets.receipts import facts_of
from engine.kernels.products import cpu_product
from engine.model.fingerprint import rope_probe
from engine.model.view import View
from engine.questions.question import Choices, ask
from engine.runs.jobs import Task
from engine.runs.measuring import Measuring
from engine.runs.schedule import Schedule
from engine.sweeps.probe import probe_of
from engine.text.rules import file_of

QUERIES_OF_ALL = 16
"""How many queries a masked token has on average when all are read: of a prompt of 32 tokens."""
EMBEDDED = "embedded demo model"


@dataclass(frozen=True)
class Source:
    """Where a worker loads the model from, as ``from_pretrained`` was told."""

    model: str | None
    device: str
    dtype: str
    route: str = "auto"
    stream: bool = False
    device_map: str | None = None
    check: bool = True


@dataclass(frozen=True)
class Blueprint:
    """``source`` is None for a model that only this process holds."""

    model: dict[str, Any]
    settings: dict[str, Any]
    kernel: dict[str, Any]
    source: Source | None
    checked: bool
    """Whether the engine was held against transformers when the model was loaded."""

    @property
    def rows_per_token(self) -> int:
        """Rows of the impact table that a masked token gives."""
        question = ask(self.settings[QUESTION])
        queries = QUERIES_OF_ALL if question.query == "all" else 1 if question.query == "last" else len(question.query)
        sites = 1 if question.read == "output" else len(probe_of(question).names(int(self.model["heads"])))
        return len(self.settings["layers"]) * sites * queries

    def manifest(self, *, source_name: str) -> Manifest:
        """The manifest of a new dataset of the prompts in ``source_name``."""
        parts = {"model": self.model, "settings": self.settings, "kernel": self.kernel}
        return new_manifest(**parts, source=source_name, checked=self.checked)

    def order(self, manifest: Manifest, *, run_id: str, folder: Path) -> Order:
        """What a worker of the dataset is told: the kernel is that of its first run."""
        settings, kernel = manifest["settings"], manifest["kernel"]
        source = self.source or Source(None, settings["device"], settings["dtype"])
        return Order(
            folder=str(folder.resolve()),
            model=source.model,
            device=settings["device"] if source.device == "auto" else source.device,
            dtype=source.dtype,
            route=source.route,
            stream=source.stream,
            device_map=source.device_map,
            check=source.check,
            layers=tuple(settings["layers"]),
            tokens=None if settings["tokens"] is None else tuple(settings["tokens"]),
            question=_anywhere(self.settings[QUESTION]),  # the same, but for where a file of spans lies
            run_id=run_id,
            fingerprint=manifest["model"]["fingerprint"],
            form=settings["format"],
            rows_per_pass=kernel["rows_per_pass"],
            product=kernel["product"],
            packed=kernel["packed"],
        )


def draw(
    measuring: Measuring,
    *,
    source: Source | None,
    fingerprint: str,
    task: Task,
    form: str,
    checked: bool,
    choices: dict[str, Any],
) -> Blueprint:
    """The blueprint of a dataset made with this decoder; ``choices`` are those that concern the input."""
    decoder = measuring.decoder
    name = "a model held in memory" if source is None else source.model or EMBEDDED
    settings = {
        "dtype": str(decoder.dtype if source is None else source.dtype).removeprefix("torch."),
        "device": decoder.device.type,
        "layers": list(task.layers),
        "tokens": None if task.tokens is None else list(task.tokens),
        QUESTION: task.question.words(),
        "format": form,
        **choices,
    }
    if (spans := file_of(task.question.mask)) is not None:
        settings[SPANS] = f"sha256:{facts_of(spans)[1]}"
    on_cpu = decoder.device.type == "cpu"
    kernel = {
        "product": cpu_product() if on_cpu else "torch",
        "packed": decoder.is_packed,
        "rows_per_pass": Schedule(decoder).rows,
    }
    model = {"name": name, "fingerprint": fingerprint, "tokenizer": _tokenizer_digest(measuring.tokenizer)}
    return Blueprint(model | _shape(decoder), settings, kernel, source, checked)


def _shape(view: View) -> dict[str, Any]:
    """What tells one model from another without its weights."""
    return {
        "rope": rope_probe(view),
        "route": view.route,
        "layers": len(view.layers),
        "heads": view.heads.num_heads,
        "kv_heads": view.heads.num_kv_heads,
        "head_dim": view.heads.head_dim,
    }


def _tokenizer_digest(tokenizer: Any) -> str | None:
    """A digest of all that turns text into ids; None without a tokenizer, or for one that cannot be read."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if tokenizer is None or backend is None:
        return None
    return f"sha256:{hashlib.sha256(backend.to_str().encode('utf-8', 'backslashreplace')).hexdigest()}"


def _anywhere(words: Choices) -> Choices:
    """The words of a question for a worker, whose working directory may be another."""
    spans = file_of(words.get("mask"))
    return words if spans is None else {**words, "mask": f"spans:{spans.resolve()}"}
