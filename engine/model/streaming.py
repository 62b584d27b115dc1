"""Weights that are read when a pass comes to them, the next while these compute.

A model that does not fit into memory still gives its table, because a pass needs every weight once: memory holds two
layers. Files are read, not mapped: pages of a mapped file count as the process's own, lie where the file and not the
kernel wants them, and are gone in a signal that nothing can catch when the file is cut off. Reading costs one copy
within the machine's memory, beside the computing.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Generic, TypeVar, overload

from torch import Tensor

from engine.interrupts import wait
from engine.model.blocks import Blocks, Request, Shelf

Part = TypeVar("Part")


class Streamed(Sequence[Part]):
    """Parts of a model (its layers, say), each read when it is asked for, and the next one ahead of time.

    They are cheap when each is asked for once, in their order. A slice tells where a pass ends: nothing beyond it is
    read, and from the second pass on its first part is read again at its end. Whether the next part is read ahead of
    time at all is for the ``blocks`` to say. Whoever holds on to a part keeps it whole. Asking raises ``ModelError``
    when a file is gone or is not what it was. ``make`` turns the tensors of a shelf into its part.
    """

    def __init__(
        self, shelves: Sequence[Shelf], make: Callable[[int, Mapping[str, Tensor]], Part], blocks: Blocks
    ) -> None:
        self._shelves, self._make, self._blocks = tuple(shelves), make, blocks
        self._ahead: tuple[int, _Reading[Part]] | None = None
        self._passes = 0
        self._turn = threading.Lock()

    def __len__(self) -> int:
        return len(self._shelves)

    @overload
    def __getitem__(self, index: int) -> Part: ...
    @overload
    def __getitem__(self, index: slice) -> "Stretch[Part]": ...
    def __getitem__(self, index: int | slice) -> "Part | Stretch[Part]":
        return Stretch(self, range(len(self)))[index]

    def __iter__(self) -> Iterator[Part]:
        return iter(self[:])

    def take(self, index: int, journey: range) -> Part:
        """The part of that index; the next one of ``journey`` is read from now on."""
        with self._turn:
            reading, self._ahead = self._reading(index), None
            part = reading.result()
            following = self._following(index, journey)
            if following is not None and self._blocks.reads_ahead:
                self._ahead = following, self._begun(following)
            return part

    def _following(self, index: int, journey: range) -> int | None:
        """What will be asked for next, as far as can be told; the first pass may be the only one."""
        self._passes += index == journey[0]
        if index != journey[-1]:
            return index + journey.step
        return journey[0] if self._passes > 1 and len(journey) > 1 else None

    def _reading(self, index: int) -> "_Reading[Part]":
        """The reading of that part, which is most often under way."""
        if self._ahead is not None and self._ahead[0] == index:
            return self._ahead[1]
        if self._ahead is not None:
            self._ahead[1].cancel()
        return self._begun(index)

    def _begun(self, index: int) -> "_Reading[Part]":
        scope, shelf = self._blocks.scope(), self._shelves[index]

        def work(request: Request) -> Part:
            with scope:
                return self._make(index, self._blocks.filled(shelf, request))

        return _Reading(work)


class Stretch(Sequence[Part]):
    """Consecutive parts that are asked for in one pass."""

    def __init__(self, parts: Streamed[Part], places: range) -> None:
        self._parts, self._places = parts, places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Part: ...
    @overload
    def __getitem__(self, index: slice) -> "Stretch[Part]": ...
    def __getitem__(self, index: int | slice) -> "Part | Stretch[Part]":
        if isinstance(index, slice):
            return Stretch(self._parts, self._places[index])
        return self._parts.take(self._places[index], self._places)


class _Reading(Generic[Part]):
    """A part that a thread of its own reads, which ends with it and holds up no exit of the process."""

    def __init__(self, work: Callable[[Request], Part]) -> None:
        self._request = Request()
        self._found: list[Part] = []
        self._error: BaseException | None = None
        self._over = threading.Event()
        threading.Thread(target=self._run, args=(work,), name="weights", daemon=True).start()

    def _run(self, work: Callable[[Request], Part]) -> None:
        try:
            self._found.append(work(self._request))
        except BaseException as error:  # whoever waits has to hear of it
            self._error = error
        finally:
            self._over.set()

    def result(self) -> Part:
        """The part, once; raises what went wrong."""
        self._request.hurry()
        wait(self._over)
        if self._error is not None:
            raise self._error
        return self._found.pop()

    def cancel(self) -> None:
        """Stop, and drop what was read."""
        self._request.drop()
        wait(self._over)
        self._found.clear()
