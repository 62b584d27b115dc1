"""Which keys each variant hides, and from which query.

A knockout hides one or more key positions from the query of its prompt; every layer is cut on its own. The tensors of
a batch are made once, on the host, and sent to the device together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from engine.errors import SelectionError


@dataclass(frozen=True)
class Knockouts:
    """The variants of one prompt: variant i hides the key positions ``masked[i]`` from ``query_position``."""

    query_position: int
    masked: tuple[tuple[int, ...], ...]

    def hidden(self, num_keys: int) -> Bool[np.ndarray, "v k"]:
        """True where variant v hides key k."""
        hidden = np.zeros((len(self.masked), num_keys), dtype=bool)
        for variant, positions in enumerate(self.masked):
            hidden[variant, list(positions)] = True
        return hidden

    @property
    def single(self) -> bool:
        """Whether every variant hides one key and no more."""
        return all(len(positions) == 1 for positions in self.masked)

    def undefined(self, window: int | None) -> Bool[np.ndarray, " v"]:
        """True where a variant leaves the query without any visible key, so that its cell has no value."""
        first = 0 if window is None else max(0, self.query_position - window + 1)
        visible = set(range(first, self.query_position + 1))
        return np.array([visible <= set(positions) for positions in self.masked], dtype=bool)


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
    indices = sorted({_index(index, what) for index in chosen})
    if not indices:
        raise SelectionError(f"no {what} was chosen; name at least one of 0 to {count - 1}, or leave the choice out")
    for index in (indices[0], indices[-1]):
        if not 0 <= index < count:
            raise SelectionError(f"there is no {what} {index}; this run has {what}s 0 to {count - 1}")
    return tuple(indices)


def _index(value: object, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise SelectionError(f"{what} {value!r} is not an index; {what}s are whole numbers from 0")
    return int(value)
