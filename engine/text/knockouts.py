"""Which keys each variant hides, and from which query.

A knockout hides one or more key positions from the query of its prompt; every layer is cut on its own. The tensors of
a batch are made once, on the host, and sent to the device together.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
from jaxtyping import Bool, Int

from engine.errors import SelectionError


@dataclass(frozen=True)
class Knockouts:
    """The variants of one prompt: variant i hides the key positions ``masked[i]`` from ``query_position``."""

    query_position: int
    masked: tuple[tuple[int, ...], ...]
    sees_itself: bool = False
    """Whether the query keeps seeing its own position where that is masked."""

    @cached_property
    def _pairs(self) -> tuple[Int[np.ndarray, " pair"], Int[np.ndarray, " pair"]]:
        """Every (variant, hidden key) as two columns."""
        variants = np.repeat(np.arange(len(self.masked)), [len(positions) for positions in self.masked])
        keys = np.array(list(chain.from_iterable(self.masked)), dtype=np.int64)
        hidden = (keys != self.query_position) | (not self.sees_itself)
        return variants[hidden], keys[hidden]

    @property
    def single_keys(self) -> Int[np.ndarray, " v"] | None:
        """The key of every variant, if each hides one and no more."""
        variants, keys = self._pairs
        return keys if np.array_equal(variants, np.arange(len(self.masked))) else None

    def hidden(self, num_keys: int) -> Bool[np.ndarray, "v k"]:
        """True where variant v hides key k."""
        hidden = np.zeros((len(self.masked), num_keys), dtype=bool)
        hidden[self._pairs] = True
        return hidden

    def chosen(self, num_keys: int) -> Bool[np.ndarray, "v k"]:
        """True where key k is in what variant v masks, whether the query keeps seeing it or not."""
        return Knockouts(self.query_position, self.masked).hidden(num_keys)

    def undefined(self, window: int | None) -> Bool[np.ndarray, " v"]:
        """True where a variant leaves the query without any visible key, so that its cell has no value."""
        first = 0 if window is None else max(0, self.query_position - window + 1)
        variants, keys = self._pairs
        taken = variants[(keys >= first) & (keys <= self.query_position)]
        return np.bincount(taken, minlength=len(self.masked)) == self.query_position + 1 - first


def single_tokens(num_tokens: int, tokens: Sequence[int] | None) -> Knockouts:
    """One variant for each of ``tokens`` (default: all), read at the final position.

    Raises ``SelectionError`` when a token position does not exist.
    """
    return Knockouts(num_tokens - 1, tuple((p,) for p in select(tokens, num_tokens, what="token")))


def select(chosen: Sequence[int] | None, count: int, *, what: str) -> tuple[int, ...]:
    """The chosen indices, sorted and each once; all of ``range(count)`` when nothing is chosen.

    Raises ``SelectionError`` for an empty choice or an index outside ``0 .. count - 1``.
    """
    if chosen is None:
        return tuple(range(count))
    indices = sorted({_index(index, what) for index in _listed(chosen, what)})
    if not indices:
        raise SelectionError(f"no {what} was chosen; name at least one of 0 to {count - 1}, or leave the choice out")
    for index in (indices[0], indices[-1]):
        if not 0 <= index < count:
            raise SelectionError(f"there is no {what} {index}; this run has {what}s 0 to {count - 1}")
    return tuple(indices)


def _listed(chosen: object, what: str) -> list[object]:
    """The choice as a list, whatever sequence, array or tensor it came in."""
    values = chosen.tolist() if hasattr(chosen, "tolist") else chosen
    if not isinstance(values, Iterable) or isinstance(values, str | bytes):
        raise SelectionError(f"{what}s are chosen by a list of whole numbers, such as [0, 5], not by {chosen!r}")
    return list(values)


def _index(value: object, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise SelectionError(f"{what} {value!r} is not an index; {what}s are whole numbers from 0")
    return int(value)
