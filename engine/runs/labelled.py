"""Numbers with their labels: what a task asks of the columns of its tables."""

import numpy as np
from jaxtyping import Float

from engine.errors import NumbersError
from engine.questions.question import Question
from engine.runs.impact import Impact
from engine.runs.jobs import Job, Task
from engine.sweeps.probe import probe_of


def labels_of(job: Job, question: Question) -> dict[str, tuple[object, ...]]:
    """The columns that have a value for each case."""
    labels: dict[str, tuple[object, ...]] = {}
    groups, prompt = job.plan.groups, job.prompt
    if question.query != "last":
        labels["query_position"] = job.plan.queries
    if question.mask != "tokens":
        labels["masked_positions"] = tuple("+".join(map(str, group)) for group in groups)
    if "token_id" in question.columns:
        labels["token_id"] = tuple(prompt.token_ids[group[0]] if len(group) == 1 else None for group in groups)
    if "is_special" in question.columns:
        labels["is_special"] = tuple(all(prompt.special[position] for position in group) for group in groups)
    return labels


def first_positions(job: Job) -> tuple[int, ...]:
    """The first position that each case hides."""
    return tuple(group[0] for group in job.plan.groups)


def num_distances(task: Task) -> int:
    """How many metrics depend on the masked run."""
    return 2 + probe_of(task.question).relative


def impact_of(
    job: Job,
    task: Task,
    cells: Float[np.ndarray, "l v site metric"],
    *,
    heads: int,
    next_tokens: tuple[tuple[str, float], ...] = (),
) -> Impact:
    """The impact of one prompt from what a pass measured: L2, cosine, and the columns that were asked for."""
    probe = probe_of(task.question)
    metrics = [name for name, wanted in (("relative_l2", probe.relative), ("attention_mass", probe.masses)) if wanted]
    more = {name: cells[..., 2 + place] for place, name in enumerate(metrics)}
    return Impact(
        job.prompt,
        task.layers,
        first_positions(job),
        tuple(probe.names(heads)),
        cells[..., :2],
        next_tokens,
        job.names,
        labels_of(job, task.question),
        {name: more[name] for name in task.question.columns if name in more},
    )


def not_finite(broken_layer: int | None) -> NumbersError:
    """The error for numbers that are not finite, with the layer in which that began."""
    if broken_layer is None:
        return NumbersError("a distance is not finite although the activations are; choose --dtype float64")
    return NumbersError(
        f"the activations that leave layer {broken_layer} are not finite (NaN or infinity); check the weights of the "
        "checkpoint, and choose --dtype float32 if they were narrower"
    )
