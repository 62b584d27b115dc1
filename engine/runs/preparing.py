"""Prompts to jobs: what each prompt's cases are, and which of their cells have no value."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool

from engine.errors import ImpactError, ModelError, PromptError, SelectionError
from engine.model.view import View
from engine.questions.question import Question
from engine.runs.jobs import Job, Task
from engine.text.plans import Itinerary, Plan, itinerary, plan_cases, windows_of
from engine.text.prompts import Prompt, Reading, read_prompts
from engine.text.rules import read_rule

Outline = tuple[Plan, tuple[int, ...], Bool[np.ndarray, "l v"], Itinerary | None]
"""A plan, the group of each case, the undefined cells and, where effects travel, the runs."""


class Preparing:
    """One task, ready for any number of prompts.

    Raises ``SelectionError`` for a task that this model cannot be given, ``InputError`` for a file of spans that cannot
    be read, and ``ModelError`` where text is needed that the model has no tokenizer for.
    """

    def __init__(self, decoder: View, tokenizer: Any, task: Task) -> None:
        question = task.question
        _refuse_beyond(decoder, question)
        self._decoder, self._tokenizer, self._task = decoder, tokenizer, task
        self._rule = read_rule(question.mask, tokens=task.tokens, skip_special=question.skip_special)
        num_layers, num_heads = len(decoder.layers), decoder.heads.num_heads
        heads = None if question.heads is None else question.heads.grid(num_layers, num_heads)
        self._whole: Bool[np.ndarray, " l"] = np.ones(num_layers, bool) if heads is None else np.all(heads, axis=1)
        self._answer = self._answer_tokens()
        special = self._rule.needs_special or "is_special" in question.columns
        self._reading = Reading(question.chat, question.system, self._rule.needs_offsets, special)
        self._outlines: dict[int, Outline | ImpactError] = {}

    def jobs(self, prompts: Sequence[Any], prompt_ids: Sequence[Any] | None = None) -> list[Job | ImpactError]:
        """The prompts, read, with their cases; in the place of one that cannot be measured, why not."""
        found = read_prompts(
            prompts,
            self._tokenizer,
            vocab_size=self._decoder.vocab_size,
            max_positions=self._decoder.max_positions,
            min_tokens=1 if any(sight.has_sink for sight in self._decoder.sights) else 2,
            num_following=max(0, len(self._answer) - 1),
            reading=self._reading,
        )
        ids = range(len(prompts)) if prompt_ids is None else prompt_ids
        return [self._job(prompt, prompt_id) for prompt, prompt_id in zip(found, ids, strict=True)]

    def _job(self, prompt: Prompt | ImpactError, prompt_id: Any) -> Job | ImpactError:
        if isinstance(prompt, ImpactError):
            return prompt
        try:
            (plan, group_of, undefined, runs), names = self._outlined(prompt, prompt_id)
        except ImpactError as error:
            return error
        of_cases = tuple(names[group] for group in group_of)
        return Job(prompt, plan, of_cases, undefined, self._windows, self._answer, runs)

    def _outlined(self, prompt: Prompt, prompt_id: Any) -> tuple[Outline, Sequence[str]]:
        """The cases of a prompt and the names of its groups. Single tokens are the same for all prompts of a length."""
        length, question = len(prompt), self._task.question
        if not self._rule.is_tokens or question.skip_special:
            groups = self._rule.groups(prompt, prompt_id=prompt_id)
            return self._outline(groups.positions, length), groups.names
        if length not in self._outlines:
            try:
                groups = self._rule.groups(prompt)
                self._outlines[length] = self._outline(groups.positions, length)
            except ImpactError as error:
                self._outlines[length] = error
        found, tokens = self._outlines[length], self._task.tokens
        if isinstance(found, ImpactError):
            raise found.with_traceback(None)
        return found, prompt.pieces if tokens is None else [prompt.pieces[token] for token in tokens]

    def _outline(self, groups: Sequence[tuple[int, ...]], num_tokens: int) -> Outline:
        question = self._task.question
        plan, group_of = plan_cases(groups, question.query, question.hidden_from, num_tokens=num_tokens)
        if not len(plan):
            raise PromptError("nothing can be measured: every chosen token stands after the query; choose others")
        num_answer = max(1, len(self._answer))
        runs = itinerary(plan, self._windows, num_answer=num_answer) if self._windows else None
        return plan, group_of, self._undefined(plan), runs

    def _undefined(self, plan: Plan) -> Bool[np.ndarray, "l v"]:
        """The cells whose query is left with nothing to attend to, in all heads. Raises ``PromptError`` if all are."""
        blind = self._blind(plan)
        task = self._task
        if task.question.is_local:
            undefined = blind[list(task.layers)]
        elif task.question.read == "layer":
            undefined = np.logical_or.accumulate(blind, axis=0)[list(task.layers)]
        else:
            undefined = np.stack([blind[first:last].any(axis=0) for first, last in self._windows])
        if undefined.all():
            raise PromptError(
                "nothing can be measured: every chosen token is the only one that its query attends to; "
                "choose other tokens, or a longer prompt"
            )
        return undefined

    def _blind(self, plan: Plan) -> Bool[np.ndarray, "l v"]:
        """Where all layers are cut: the cases that leave their query nothing to attend to, not even a sink."""
        sights, whole = self._decoder.sights, self._whole
        if self._task.question.intervention != "mask":
            return np.zeros((len(sights), len(plan)), dtype=bool)
        by_window = {sight.window: plan.undefined(sight.window) for sight in sights}
        blind = np.stack([by_window[sight.window] & (not sight.has_sink) for sight in sights])
        return blind & whole[:, None]

    @cached_property
    def _windows(self) -> tuple[tuple[int, int], ...]:
        question, num_layers = self._task.question, len(self._decoder.layers)
        if question.is_local:
            return ()
        return tuple(windows_of(question.window, self._task.layers, num_layers))

    def _answer_tokens(self) -> tuple[int, ...]:
        """The tokens of the chosen answer, as a continuation."""
        answer, question = self._task.question.answer, self._task.question
        if answer is None:
            return ()
        if isinstance(answer, str) and self._tokenizer is None:
            raise ModelError("this model has no tokenizer, so it reads no answer; give token ids from Python")
        tokens = answer if isinstance(answer, tuple) else self._tokenized(answer)
        if not tokens or max(tokens) >= self._decoder.vocab_size:
            raise SelectionError(
                f"the answer is empty or not of this model's {self._decoder.vocab_size} tokens; give the text that "
                "follows the prompt, or leave it out"
            )
        if len(tokens) > 1 and question.query != "last":
            raise SelectionError(
                f"the answer {answer!r:.60} has {len(tokens)} tokens, which follow the last position; choose --query "
                "last, or an answer of one token"
            )
        return tokens

    def _tokenized(self, answer: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(answer, add_special_tokens=False, verbose=False)["input_ids"])


def _refuse_beyond(decoder: View, question: Question) -> None:
    """Raise ``SelectionError`` for a question that the generic route does not answer."""
    if decoder.route == "fused":
        return
    if not question.is_local:
        raise SelectionError(
            f"{decoder.name!r:.80} takes the generic route, on which every layer is cut on its own and read at once; "
            "--cut window and all, and --read output, are for the families that `models` lists as fused"
        )
    if "Result_h" in question.sites:
        raise SelectionError("the generic route does not know what a head adds to the stream; leave Result_h out")
