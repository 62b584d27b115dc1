"""Jobs whose effects travel: one journey through the decoder for all of them, read in its layers or at its end."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from engine.errors import NumbersError
from engine.kernels.difference import Carried
from engine.model.decoder import Decoder
from engine.questions.question import Question
from engine.runs.effect import Effect
from engine.runs.impact import Impact
from engine.runs.jobs import Job, Task
from engine.runs.labelled import first_positions, impact_of, labels_of, not_finite
from engine.sweeps.answers import Answers, answers
from engine.sweeps.distances import measure_readouts
from engine.sweeps.journey import Journey
from engine.sweeps.passes import limits_for
from engine.sweeps.reads import Reads, read_stations, reads_of
from engine.sweeps.travelling import Station, travel
from engine.text.forks import bundled
from engine.text.pieces import readable_pieces

Watch = Callable[[Iterable[Any]], Iterable[Any]]


class Trip:
    """Prompts that are companions (see ``Job``), on their way through a decoder."""

    def __init__(self, decoder: Decoder, tokenizer: Any, jobs: list[Job], task: Task, watch: Watch) -> None:
        self._decoder, self._tokenizer, self._jobs, self._task = decoder, tokenizer, jobs, task
        self._watch = watch
        self._first = jobs[0]
        self._journey = self._start(task.question)

    def _start(self, question: Question) -> Journey:
        """Token ids and what travels; tokens after the last position that is read are left out, if none needs them."""
        first = self._first
        needed = max(first.plan.queries) + max(1, len(first.answer))
        if question.intervention == "value-mean":
            needed = max(needed, len(first.prompt))
        ids = [[*job.prompt.token_ids, *job.answer[:-1]][:needed] for job in self._jobs]
        heads = None
        if question.heads is not None:
            heads = question.heads.grid(len(self._decoder.layers), self._decoder.heads.num_heads)
        return Journey(
            self._decoder,
            torch.tensor(ids, device="cpu").to(self._decoder.device, non_blocking=True),
            bundled(first.itinerary.forks),
            question.intervention,
            heads,
            len(first.prompt),
            limits_for(self._decoder),
        )

    def impacts(self) -> list[Impact]:
        """What is read in the layers."""
        question, layers = self._task.question, self._task.layers
        reads = reads_of(self._journey, self._first.itinerary.asked)
        by_head = "Result_h" in question.sites
        stations = self._watch(travel(self._journey, last=max(layers), queries=reads.positions, by_head=by_head))
        readouts = read_stations(self._journey, reads, stations, set(layers), question.sites)
        relative = "relative_l2" in question.columns
        measured, _ = measure_readouts(readouts, reads.of.rows, limits=self._journey.limits, relative=relative)
        cells = rearrange(measured.cpu().numpy(), "l (b v) site metric -> b l v site metric", b=len(self._jobs))
        return [self._impact(job, each) for job, each in zip(self._jobs, cells, strict=True)]

    def _impact(self, job: Job, cells: Float[np.ndarray, "l v site metric"]) -> Impact:
        self._require_finite(cells[..., 0])
        cells[job.undefined] = np.nan
        return impact_of(job, self._task, cells, heads=self._decoder.heads.num_heads)

    def effects(self, likeliest: Callable[[Tensor], list[Any]]) -> list[Effect]:
        """What is read at the output. ``likeliest`` turns streams into next tokens."""
        num_answer = max(1, len(self._first.answer))
        asked = [(fork, q + step) for fork, q in self._first.itinerary.asked for step in range(num_answer)]
        reads = reads_of(self._journey, asked)
        stream = self._leaving()
        found = answers(
            self._decoder,
            reads.rows(stream),
            targets=self._targets(reads, num_answer),
            relative="relative_l2" in self._task.question.columns,
        )
        return self._effects(found, reads, num_answer, likeliest(self._last_streams(stream)))

    def _targets(self, reads: Reads, num_answer: int) -> Tensor:
        """The token that is scored after each baseline row; -1 where it is the most probable one."""
        start = reads.positions[0]
        answer = self._first.answer
        one = [answer[position - start if num_answer > 1 else 0] if answer else -1 for position in reads.positions]
        return torch.tensor(one * len(self._jobs), device="cpu").to(self._decoder.device, non_blocking=True)

    def _leaving(self) -> Carried:
        """The stream that leaves the last layer; nothing else of a layer is kept while the next is computed."""
        stream: Carried | None = None
        for station in self._watch(travel(self._journey, last=len(self._decoder.layers) - 1)):
            stream = station.residual
            del station
        assert stream is not None
        return stream

    def _last_streams(self, stream: Carried) -> Float[Tensor, "b e"]:
        """The streams after the last query, one a prompt."""
        b, s = self._journey.token_ids.shape
        return rearrange(stream.baseline, "(b s) e -> b s e", b=b, s=s)[:, max(self._first.plan.queries)]

    def _effects(self, found: Answers, reads: Reads, num_answer: int, likeliest: list[Any]) -> list[Effect]:
        """The numbers of every prompt: those of the query itself, and log-probabilities summed over the answer."""
        shape = {"b": len(self._jobs), "w": len(self._first.windows), "a": num_answer}
        metrics = ("l2_distance", "cosine_distance", "relative_l2")[: found.distances.shape[1]]
        at_query = {name: found.distances[:, place] for place, name in enumerate(metrics)}
        at_query |= {"kl_divergence": found.kl.to(found.distances)}
        before = found.logprob.index_select(0, reads.of.rows)
        summed = {"answer_logprob": before, "answer_logprob_masked": before + found.change}
        summed |= {"answer_logprob_change": found.change}
        pattern = "(b w v a) -> b w v a"
        columns = {n: rearrange(x, pattern, **shape)[..., 0] for n, x in at_query.items()}
        columns |= {n: rearrange(x, pattern, **shape).sum(-1) for n, x in summed.items()}
        numbers = {n: x.to(self._decoder.dtype).cpu().numpy() for n, x in columns.items()}
        top = rearrange(found.top, pattern, **shape)[..., 0].cpu().numpy()
        scored = rearrange(found.scored.index_select(0, reads.of.rows), pattern, **shape)[:, 0].cpu().numpy()
        return [
            self._effect(job, {n: x[place] for n, x in numbers.items()}, top[place], scored[place], likeliest[place])
            for place, job in enumerate(self._jobs)
        ]

    def _effect(
        self, job: Job, numbers: dict[str, np.ndarray], top: np.ndarray, scored: np.ndarray, likeliest: Any
    ) -> Effect:
        """One prompt's effects; where its query has nothing to attend to, nothing that depends on it."""
        self._require_finite(*(numbers[name] for name in ("l2_distance", "kl_divergence", "answer_logprob_masked")))
        for name, values in numbers.items():
            if name != "answer_logprob":
                values[job.undefined] = np.nan
        question, window = self._task.question, self._task.question.window
        tops = [self._pieces(row, blank) for row, blank in zip(top, job.undefined, strict=True)]
        answer = question.answer
        if isinstance(answer, tuple):
            answer = "".join(readable_pieces(answer, self._tokenizer))
        return Effect(
            job.prompt,
            (None,) if window is None else self._task.layers,
            first_positions(job),
            job.names,
            labels_of(job, question),
            numbers,
            readable_pieces(scored[:, 0].tolist(), self._tokenizer) if answer is None else (answer,) * job.num_cases,
            tuple(tops),
            likeliest,
        )

    def _pieces(self, ids: np.ndarray, blank: np.ndarray) -> tuple[str | None, ...]:
        pieces = readable_pieces(ids.tolist(), self._tokenizer)
        return tuple(None if undefined else piece for piece, undefined in zip(pieces, blank, strict=True))

    def _require_finite(self, *numbers: np.ndarray) -> None:
        if not all(np.isfinite(each).all() for each in numbers):
            broken = first_broken(travel(self._journey, last=len(self._decoder.layers) - 1))
            if broken is None and self._task.question.read == "output":
                raise NumbersError(
                    "what the final norm or the unembedding gives is not finite (NaN or infinity); check the weights "
                    "of the checkpoint, and choose --dtype float32 if they were narrower"
                )
            raise not_finite(broken)


def first_broken(stations: Iterable[Station]) -> int | None:
    """The first layer whose stream or heads are not finite. Waits for the device at every layer."""
    return next((s.layer for s in stations if not all(bool(x.rows.isfinite().all()) for x in (s.residual, s.z))), None)
