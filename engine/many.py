"""Many prompts: read some hundreds ahead, measured in batches, given back in the order in which they came."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from engine.errors import ImpactError, NumbersError
from engine.impact import Impact
from engine.schedule import Job, Schedule

READ_AHEAD = 512
"""Prompts that are sorted by length together; more would find closer companions, and hold more results back."""

Measure = Callable[[list[Job]], list[Impact]]
Reject = Callable[[Any, ImpactError], object]


def measured_in_order(
    prompts: Iterable[tuple[Any, Any]],
    *,
    schedule: Schedule,
    prepare: Callable[[Any], Job],
    measure: Measure,
    reject: Reject,
) -> Iterator[tuple[Any, Impact]]:
    """(id, impact) of every (id, prompt) but those handed to ``reject`` with the reason, which may raise it."""
    waiting = iter(prompts)
    while window := list(islice(waiting, READ_AHEAD)):
        jobs: dict[Any, Job] = {}
        for place, (prompt_id, source) in enumerate(window):
            try:
                jobs[place] = prepare(source)
            except ImpactError as error:
                reject(prompt_id, error)
        impacts = _measured(jobs, schedule, measure, lambda place, error: reject(window[place][0], error))
        yield from ((window[place][0], impacts[place]) for place in jobs if place in impacts)


def _measured(
    jobs: dict[Any, Job], schedule: Schedule, measure: Measure, reject: Callable[[Any, ImpactError], object]
) -> dict[Any, Impact]:
    """The impact of every job, by its key. A prompt whose numbers break is found among its company and rejected."""
    impacts: dict[Any, Impact] = {}
    batches = list(schedule.batches(jobs))
    while batches:
        batch = batches.pop(0)
        try:
            impacts |= schedule.run({key: jobs[key] for key in batch}, measure)
        except NumbersError as error:
            if len(batch) == 1:
                reject(batch[0], error)
            batches[:0] = [[key] for key in batch] if len(batch) > 1 else []
    return impacts
