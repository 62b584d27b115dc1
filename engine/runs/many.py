"""Many prompts: read ahead, measured in batches, given back in the order in which they came."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from engine.errors import ImpactError, NumbersError, OutOfMemoryError
from engine.runs.jobs import Job
from engine.runs.measuring import Found
from engine.runs.schedule import Schedule

FIRST_AHEAD, MOST_AHEAD = 16, 512
"""Prompts that are sorted by length together: few at first, for early results, then twice as many each time. More find
closer companions, and hold more results back. Where every pass reads all weights, early results would be dear."""

Prepare = Callable[[list[Any], list[Any]], list[Job | ImpactError]]
"""Prompts and their ids -> jobs."""
Measure = Callable[[list[Job]], list[Found]]
Outcomes = dict[int, Found | ImpactError]


def measured_in_order(
    prompts: Iterable[tuple[Any, Any]],
    *,
    schedule: Schedule,
    prepare: Prepare,
    measure: Measure,
    reject: Callable[[Any, ImpactError], object],
) -> Iterator[tuple[Any, Found]]:
    """(id, impact) of every (id, prompt) but those handed to ``reject`` with the reason, which may raise it.

    Whatever ends the stream, an iterable that fails or ``reject``, the prompts before come first.
    """
    first = MOST_AHEAD if schedule.reads_weights else FIRST_AHEAD
    waiting, ahead, failure = iter(prompts), first, None
    while failure is None:
        window, failure = _read(waiting, ahead)
        ids, sources = [prompt_id for prompt_id, _ in window], [prompt for _, prompt in window]
        outcomes = measured(prepare(sources, ids), schedule=schedule, measure=measure)
        for place, (prompt_id, _) in enumerate(window):
            outcome = outcomes[place]
            if isinstance(outcome, ImpactError):
                reject(prompt_id, outcome)
            else:
                yield prompt_id, outcome
        ahead = min(2 * ahead, MOST_AHEAD)
    if not isinstance(failure, StopIteration):
        raise failure


def _read(waiting: Iterator[Any], count: int) -> tuple[list[Any], Exception | None]:
    """The next prompts, and why there are fewer than ``count``: the end, or what the iterable raised."""
    window: list[Any] = []
    try:
        while len(window) < count:
            window.append(next(waiting))
    except Exception as reason:
        return window, reason
    return window, None


def measured(prepared: list[Job | ImpactError], *, schedule: Schedule, measure: Measure) -> Outcomes:
    """The impact of every prompt, or the reason why there is none, by its place."""
    outcomes: Outcomes = {place: error for place, error in enumerate(prepared) if isinstance(error, ImpactError)}
    jobs = {place: job for place, job in enumerate(prepared) if isinstance(job, Job)}
    batches = list(schedule.batches(jobs))
    while batches:
        batch = batches.pop(0)
        try:
            impacts = schedule.run({place: jobs[place] for place in batch}, measure)
            outcomes.update(impacts)
        except (NumbersError, OutOfMemoryError) as error:
            # One prompt breaks or does not fit: each by itself, to find out which.
            if len(batch) == 1:
                outcomes[batch[0]] = error
            else:
                batches[:0] = [[place] for place in batch]
    return outcomes
