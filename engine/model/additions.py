"""What a layer's attention adds to the residual stream, found in a layer that nobody has described.

While the layer runs, its submodules are watched. What the attention gives, or what a later submodule (a norm, a
dropout) makes of that, is what it adds if, times one number, it is the step from the stream that entered to what a
later submodule reads (attention first, then MLP), or one of two such terms that make up the whole update (both beside
each other). The number is a family's residual multiplier, most often 1.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from engine.model.visits import Visit

TOLERANCE = 1e-4
"""Share of a step that may be left unexplained, beside the rounding of the stream."""
ROUNDINGS = 8
ONE = 1e-3
"""A factor this close to 1 is 1."""


@dataclass(frozen=True)
class Addition:
    """What the submodule ``name`` of the layer gives at its call number ``call``, times ``factor``."""

    name: str
    call: int
    factor: float


@dataclass(frozen=True, eq=False)
class Event:
    """One call of a submodule that gives vectors as wide as the stream, and what it reads if that is as wide."""

    name: str
    call: int
    read: Float[Tensor, "1 s e"] | None
    given: Float[Tensor, "1 s e"]


def find_addition(visit: Visit, attention: nn.Module) -> Addition | None:
    """What ``attention``, which lies in the visited layer, adds to the stream; None where nothing fits."""
    with watched(visit.layer, like=visit.entering) as events:
        leaving = visit.again()
    name = next(name for name, module in visit.layer.named_modules() if module is attention)
    made = _made_of(events, name)
    return _before_another(visit.entering, events, made) or _beside_another(
        leaving - visit.entering, events, made, name
    )


def _before_another(
    entering: Float[Tensor, "1 s e"], events: Sequence[Event], made: Sequence[Event]
) -> Addition | None:
    """The one of ``made`` that, added to the stream, gives what a later submodule reads."""
    for event in made:
        for later in events[events.index(event) + 1 :]:
            factors = None if later.read is None else _fit(later.read - entering, [event.given], later.read)
            if factors is not None:
                return Addition(event.name, event.call, factors[0])
    return None


def _beside_another(
    step: Float[Tensor, "1 s e"], events: Sequence[Event], made: Sequence[Event], attention: str
) -> Addition | None:
    """The one of ``made`` that makes up the step together with what another submodule gives: both read one stream."""
    apart = [event for event in events if not (event.name.startswith(attention) or attention.startswith(event.name))]
    others = [event for event in apart if event not in made]
    for event in made:
        for other in others:
            factors = _fit(step, [event.given, other.given], step)
            if factors is not None:
                return Addition(event.name, event.call, factors[0])
    return None


def _made_of(events: Sequence[Event], attention: str) -> list[Event]:
    """The attention's own call, and those that read what it or one of them gave."""
    made: list[Event] = []
    for event in events:
        reads = event.read is not None and any(torch.equal(event.read, each.given) for each in made)
        if event.name == attention or reads:
            made.append(event)
    return made


def _fit(
    step: Float[Tensor, "1 s e"], terms: Sequence[Float[Tensor, "1 s e"]], stream: Float[Tensor, "1 s e"]
) -> list[float] | None:
    """The factors with which the terms make up the step, none of them 0; None where they do not."""
    wide = torch.stack([term.double().flatten() for term in terms], dim=1)
    goal = step.double().flatten()
    factors = torch.linalg.lstsq(wide, goal[:, None]).solution[:, 0]
    rounding = ROUNDINGS * torch.finfo(step.dtype).eps * stream.double().norm()
    left = (goal - wide @ factors).norm()
    if not left <= TOLERANCE * goal.norm() + rounding or goal.norm() <= rounding or (factors.abs() < TOLERANCE).any():
        return None
    return [1.0 if abs(factor - 1) < ONE else factor for factor in factors.tolist()]


@contextmanager
def watched(layer: nn.Module, *, like: Tensor) -> Iterator[list[Event]]:
    """The calls of the layer's submodules, in the order in which they end."""
    events: list[Event] = []
    calls: dict[str, int] = {}

    def watch(name: str, module: nn.Module) -> Any:
        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            read, given = (_stream(each, like) for each in (next(iter(args), kwargs.get("hidden_states")), output))
            calls[name] = calls.get(name, -1) + 1
            if given is not None:
                events.append(Event(name, calls[name], read, given))

        return module.register_forward_hook(note, with_kwargs=True)

    hooks = [watch(name, module) for name, module in layer.named_modules() if name]
    try:
        yield events
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def caught(layer: nn.Module, addition: Addition) -> Iterator[list[Float[Tensor, "s e"]]]:
    """What the layer's attention adds in the one call that is made meanwhile."""
    added: list[Tensor] = []
    calls = 0

    def note(_: nn.Module, __: Any, output: Any) -> None:
        nonlocal calls
        if calls == addition.call:
            first = output[0] if isinstance(output, tuple | list) else output
            added.append(first.reshape(-1, first.shape[-1]) * addition.factor)
        calls += 1

    hook = layer.get_submodule(addition.name).register_forward_hook(note)
    try:
        yield added
    finally:
        hook.remove()


def _stream(value: Any, like: Tensor) -> Tensor | None:
    """The stream among what a submodule reads or gives; some lay positions out as rows."""
    first = value[0] if isinstance(value, tuple | list) and value else value
    fits = isinstance(first, Tensor) and first.numel() == like.numel() and first.shape[-1:] == like.shape[-1:]
    return first.reshape(like.shape) if fits else None
