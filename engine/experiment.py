"""The experiment, from a prompt to its impact table: the one place where all parts meet."""

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, Unpack

import polars as pl
import torch
from torch import nn

from engine.checks.selfcheck import self_check
from engine.datasets.blueprint import Blueprint, Source, draw
from engine.datasets.folder import FORMS
from engine.datasets.manifest import IDS, Manifest, recorded_kernel
from engine.datasets.progress import State
from engine.errors import ImpactError, ModelError, PromptError, SelectionError
from engine.files import FilePath
from engine.kernels.products import keeping_to
from engine.making import Prompts, Staff, make_dataset
from engine.model.adoption import Edition
from engine.model.decoder import Decoder
from engine.model.devices import free_host_bytes, keep_freed_memory, memory_errors
from engine.model.fingerprint import fingerprint
from engine.model.loading import load_view, view_of
from engine.model.view import Route, View
from engine.questions.question import Choices, ask
from engine.runs.effect import Effect
from engine.runs.impact import Impact
from engine.runs.jobs import Task
from engine.runs.many import measured_in_order
from engine.runs.measuring import Measuring
from engine.runs.schedule import Schedule
from engine.sweeps.replay import Replay
from engine.text.knockouts import select
from engine.text.prompts import Prompt

CACHED_BYTES = 1 << 26
"""Weights up to this size stay in a processor's caches, where their order hardly matters."""


class AttentionMasker:
    """Measures how far each layer's output moves when attention to a token is cut.

    ``AttentionMasker(model, tokenizer=None)`` takes a transformers model that is already loaded and only reads it, or a
    ``View``; ``AttentionMasker.from_pretrained(...)`` loads a checkpoint. ``route``: "fused", for described families;
    "generic", by the model's own layers, for any whose attention can be followed; "auto" is the first of them that
    leads there. ``masker.route`` says which was taken. Unless ``check`` is False, the engine's numbers on a short probe
    are held against transformers' own once, before anything is measured; see ``self_check``.

    Weights of a model that you edit in place are taken anew at the next run; only an edit through ``.data``, which
    torch does not count, needs a new masker. On a CPU the process keeps freed memory for its next use, up to 31 MiB a
    block. Raises ``ModelError`` for an architecture that is not supported, and ``CheckError`` where the engine and
    transformers disagree.
    """

    def __init__(
        self, model: nn.Module | View, tokenizer: Any = None, *, route: str = "auto", check: bool = True
    ) -> None:
        if tokenizer is not None and not hasattr(tokenizer, "convert_ids_to_tokens"):
            raise ModelError(f"a {type(tokenizer).__name__} is no tokenizer; hand in a transformers one, or None")
        model = getattr(model, "_orig_mod", model)  # torch.compile wraps the module
        self._measuring = Measuring(model if isinstance(model, View) else view_of(model, route=route), tokenizer)
        self._held, self._asked_route = None if isinstance(model, View) else model, route
        self._edition = None if self._held is None else Edition(self._held)
        self._runs, self._settled = 0, False
        self._source: Source | None = None
        self._fingerprint: str | None = None
        if self.view.device.type == "cpu":
            keep_freed_memory()
        self._checked = check and self_check(self.view, self._held)

    @property
    def measuring(self) -> Measuring:
        """What does the work."""
        return self._measuring

    @property
    def view(self) -> View:
        """The engine's view on the model."""
        return self._measuring.decoder

    @property
    def decoder(self) -> Decoder:
        """The weights as the engine sees them. Raises ``ModelError`` on the generic route, which leaves them alone."""
        if not isinstance(self.view, Decoder):
            raise ModelError("this model runs its own layers, so there is no decoder of the engine's; see masker.view")
        return self.view

    @property
    def route(self) -> Route:
        """fused, or generic where the model runs its own layers."""
        return self.view.route

    @property
    def checked(self) -> bool:
        """Whether the engine was held against transformers when the model was loaded."""
        return self._checked

    @property
    def tokenizer(self) -> Any:
        """What reads text; None if the model came without."""
        return self._measuring.tokenizer

    @property
    def replay(self) -> Replay:
        """The recorded passes on CUDA."""
        return self._measuring.replay

    def read(self, prompt: str | Sequence[int]) -> Prompt:
        """Tokenize and check a prompt. Raises ``PromptError``."""
        return self._measuring.read(prompt)

    @classmethod
    def from_pretrained(
        cls,
        model: str | None = None,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "float32",
        route: str = "auto",
        stream: bool = False,
        device_map: str | None = None,
        check: bool = True,
    ) -> "AttentionMasker":
        """Load a local folder or a hub id; None is the model that ships with the program.

        ``device``: auto, cpu, cuda, cuda:N or mps. ``dtype``: float32, float64, or bfloat16 (products in bfloat16,
        everything between them in float32; on the generic ``route`` everything as transformers computes it). With
        ``stream`` the weights stay in their files, and every pass reads them layer by layer: memory holds two layers,
        and the numbers are the same. ``device_map="auto"`` lays the layers out over all devices there are (with
        accelerate). ``check``: as for the class. Raises ``ModelError`` and ``DeviceError``.
        """
        place: dict[str, Any] = {"stream": stream, "device_map": device_map}
        masker = cls(*load_view(model, device=device, dtype=dtype, route=route, **place), check=check)
        name, kind = None if model is None else str(model), str(dtype).removeprefix("torch.")
        masker._source = Source(name, str(device), kind, masker.route, **place, check=check)
        return masker

    def run(
        self,
        prompt: str | Sequence[int],
        *,
        layers: Sequence[int] | None = None,
        tokens: Sequence[int] | None = None,
        **choices: Unpack[Choices],
    ) -> pl.DataFrame:
        """The impact table of ``prompt`` (text or token ids), for the chosen layers and token positions (default: all).

        Columns: layer, token_masked, token_position, variant, l2_distance, cosine_distance; undefined cells are null.
        Costs about one forward pass for a short prompt. ``choices`` ask another question, see ``Choices``: with
        ``read="output"`` the answer is the effects table. Raises ``PromptError``, ``SelectionError``, ``NumbersError``
        and, when memory runs out, ``DeviceError``.
        """
        return self.measure(prompt, layers=layers, tokens=tokens, **choices).table()

    def measure(
        self,
        prompt: str | Sequence[int],
        *,
        layers: Sequence[int] | None = None,
        tokens: Sequence[int] | None = None,
        next_tokens: int = 0,
        watch: Callable[[Iterable[Any]], Iterable[Any]] = iter,
        **choices: Unpack[Choices],
    ) -> Impact | Effect:
        """As ``run``, with the labels beside the numbers and, if asked, the ``next_tokens`` likeliest next tokens.

        ``watch`` wraps the layers as they pass, for a progress bar.
        """
        self._take_edits()
        task = self._task(layers, tokens, choices)
        (job,) = self._measuring.preparing(task).jobs([prompt])
        if isinstance(job, ImpactError):
            raise job
        self._settle()
        measure = partial(self._measuring.measure, task=task, next_tokens=next_tokens, watch=watch)
        return Schedule(self.view).run({0: job}, measure)[0]

    def run_many(
        self,
        prompts: Iterable[Any] | Mapping[Any, Any],
        *,
        layers: Sequence[int] | None = None,
        tokens: Sequence[int] | None = None,
        rejected: Callable[[Any, ImpactError], object] | None = None,
        **choices: Unpack[Choices],
    ) -> Iterator[tuple[Any, pl.DataFrame]]:
        """(id, impact table) of every prompt, in the order in which they come, as ``run`` would give it.

        ``prompts`` is a mapping of ids to prompts, or any iterable, whose ids are 0, 1, 2, ...; it is read up to 512
        ahead, and prompts of like length share a pass. One that cannot be measured is handed to ``rejected`` with the
        reason; without it, the error is raised, after the tables before it. Results agree with those of ``run`` within
        rounding. Raises ``PromptError`` when ``prompts`` is a single text, or nothing that can be iterated.
        """
        impacts = self.measure_many(prompts, layers=layers, tokens=tokens, rejected=rejected, **choices)
        return ((prompt_id, impact.table()) for prompt_id, impact in impacts)

    def measure_many(
        self,
        prompts: Iterable[Any] | Mapping[Any, Any],
        *,
        layers: Sequence[int] | None = None,
        tokens: Sequence[int] | None = None,
        rejected: Callable[[Any, ImpactError], object] | None = None,
        **choices: Unpack[Choices],
    ) -> Iterator[tuple[Any, Impact | Effect]]:
        """As ``run_many``, with the labels beside the numbers."""
        if isinstance(prompts, str) or not isinstance(prompts, Iterable):
            raise PromptError(f"many prompts are a list, a mapping or any other iterable, not {prompts!r:.80}; see run")
        self._take_edits()
        self._settle(again=True)
        task = self._task(layers, tokens, choices)
        return measured_in_order(
            prompts.items() if isinstance(prompts, Mapping) else enumerate(prompts),
            schedule=Schedule(self.view),
            prepare=self._measuring.preparing(task).jobs,
            measure=partial(self._measuring.measure, task=task),
            reject=rejected or _raise,
        )

    def run_dataset(
        self,
        prompts: Prompts,
        directory: FilePath,
        *,
        layers: Sequence[int] | None = None,
        tokens: Sequence[int] | None = None,
        prompt_column: str | None = None,
        id_column: str | None = None,
        limit: int | None = None,
        form: Literal["parquet", "csv"] = "parquet",
        overwrite: bool = False,
        workers: int | None = None,
        ray: str | None = None,
        watch: Callable[[State], object] = lambda state: None,
        note: Callable[[str], object] = lambda text: None,
        **question: Unpack[Choices],
    ) -> Manifest:
        """Measure a set of prompts of any size into a dataset in ``directory``; its manifest. See ``read_results``.

        ``prompts``: the path of a ``.txt``, ``.jsonl``, ``.csv`` or ``.parquet`` file, ``-`` for standard input, a
        mapping of ids to prompts, or any iterable. The same call goes on where a run stopped, for whatever reason;
        ``overwrite`` replaces what is there. ``question``: as in ``run``. The work is done here, by ``workers``
        processes, or on the Ray cluster at ``ray`` ("local" starts one). ``watch`` is told the state after every part,
        ``note`` what went wrong on the way.
        Raises ``InputError``, ``ResultsError`` for a folder of something else or a full disk, and ``Interrupted``.
        """
        staff = Staff(workers=workers, ray=ray)
        given = id_column is not None or isinstance(prompts, Mapping)
        choices = {"prompt_column": prompt_column, "id_column": id_column, "limit": limit, "ids": IDS[given]}
        kernel = None if overwrite else recorded_kernel(directory)
        blueprint = self.draw_dataset(
            layers=layers, tokens=tokens, form=form, kernel=kernel, question=question, **choices
        )
        ways: dict[str, Any] = {"staff": staff, "overwrite": overwrite, "watch": watch, "note": note}
        return make_dataset(blueprint, prompts, directory, measuring=self._measuring, **ways)

    def draw_dataset(
        self,
        *,
        layers: Sequence[int] | None,
        tokens: Sequence[int] | None,
        form: str,
        kernel: Mapping[str, Any] | None,
        question: Choices,
        **choices: Any,
    ) -> Blueprint:
        """What a dataset of this model is made with. ``kernel``: what it was begun with; ``choices``: of input."""
        if form not in FORMS:
            raise SelectionError(f"there is no dataset of form {form!r}; choose {' or '.join(FORMS)}")
        self._take_edits()
        with keeping_to(kernel["product"] if kernel else None):
            if kernel is None or kernel["packed"]:
                self._settle(again=True)
        task = self._task(layers, tokens, question)
        self._measuring.preparing(task)  # What cannot be asked of this model is refused before anything is written.
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self.view)
        return draw(
            self._measuring,
            source=self._source,
            fingerprint=self._fingerprint,
            task=task,
            form=form,
            checked=self.checked,
            choices=choices,
        )

    def _task(self, layers: Sequence[int] | None, tokens: Sequence[int] | None, choices: Choices) -> Task:
        """What is asked of every prompt. Raises ``SelectionError``."""
        question = ask(choices)
        chosen = select(layers, len(self.view.layers), what="layer")
        if question.window is None and question.read == "output" and layers is not None:
            raise SelectionError("--cut all hides in all layers and is read at the output; leave --layers out")
        positions = None if tokens is None else select(tokens, self.view.max_positions, what="token")
        return Task(chosen, positions, question)

    def _take_edits(self) -> None:
        """Read a held model again if its weights were replaced or edited since they were read."""
        if self._held is not None and self._edition is not None and not self._edition.is_current():
            self._measuring.decoder = view_of(self._held, route=self._asked_route)
            self._edition, self._runs, self._settled, self._fingerprint = Edition(self._held), 0, False, None

    def _settle(self, *, again: bool = False) -> None:
        """Before the second run, lay the weights out for the CPU's kernel: a masker that is used again is a session.

        Packing takes one to two seconds per gigabyte, once, and makes every later run faster. The packed weights
        replace the masker's own; a model that the user holds keeps its weights, so memory must allow a copy.
        """
        first, self._runs = self._runs == 0 and not again, self._runs + 1
        if first or self._settled or self.view.is_streamed or self.view.device.type != "cpu":
            return
        self._settled = True
        if CACHED_BYTES < self.view.weight_bytes < free_host_bytes():
            gc.collect()
            with memory_errors(self.view.device), torch.inference_mode():
                self.view.pack()


def run_masking_experiment(
    prompt: str | Sequence[int],
    *,
    model: str | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "float32",
    route: str = "auto",
    stream: bool = False,
    device_map: str | None = None,
    check: bool = True,
    layers: Sequence[int] | None = None,
    tokens: Sequence[int] | None = None,
    **choices: Unpack[Choices],
) -> pl.DataFrame:
    """Load ``model``, measure one prompt and return its impact table; see ``AttentionMasker`` for the arguments.

    For several prompts, load once: ``AttentionMasker.from_pretrained(...)`` and then ``run`` for each.
    """
    place: dict[str, Any] = {"stream": stream, "device_map": device_map}
    masker = AttentionMasker.from_pretrained(model, device=device, dtype=dtype, route=route, check=check, **place)
    return masker.run(prompt, layers=layers, tokens=tokens, **choices)


def _raise(prompt_id: Any, error: ImpactError) -> None:
    raise type(error)(f"prompt {prompt_id!r}: {error}") from error
