"""Which heads are cut, where not all of them are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool

from engine.errors import SelectionError
from engine.questions.indices import parse_indices


@dataclass(frozen=True)
class HeadChoice:
    """Pairs of layer and head; None as layer means every layer."""

    pairs: tuple[tuple[int | None, int], ...]

    def grid(self, num_layers: int, num_heads: int) -> Bool[np.ndarray, "l h"]:
        """True where a head is cut. Raises ``SelectionError`` for one that the model does not have."""
        cut = np.zeros((num_layers, num_heads), dtype=bool)
        for layer, head in self.pairs:
            if head >= num_heads or (layer is not None and layer >= num_layers):
                name = f"head {head}" if layer is None else f"head {layer}:{head}"
                raise SelectionError(
                    f"there is no {name}; this model has heads 0 to {num_heads - 1} in layers 0 to {num_layers - 1}"
                )
            cut[slice(None) if layer is None else layer, head] = True
        return cut


def read_heads(choice: str | Sequence[int] | Sequence[tuple[int, int]] | None) -> HeadChoice | None:
    """Heads from ``0-3,7`` or ``4:1,5:0-2``, or from a list of heads or (layer, head) pairs; None means all."""
    if choice is None:
        return None
    if not isinstance(choice, str) and (not isinstance(choice, Sequence) or isinstance(choice, bytes)):
        raise SelectionError(f"--heads {choice!r:.60} is no list; give heads such as [3], or (layer, head) pairs")
    pairs = _from_text(choice) if isinstance(choice, str) else [_pair(each) for each in choice]
    if not pairs:
        raise SelectionError("no head was chosen; name at least one, such as 0 or 4:1, or leave --heads out")
    return HeadChoice(tuple(sorted(set(pairs), key=str)))


def _from_text(text: str) -> list[tuple[int | None, int]]:
    pairs: list[tuple[int | None, int]] = []
    for part in text.split(","):
        layers, colon, heads = part.rpartition(":")
        for head in parse_indices(heads, what="--heads"):
            pairs += [(layer, head) for layer in parse_indices(layers, what="--heads")] if colon else [(None, head)]
    return pairs


def _pair(each: object) -> tuple[int | None, int]:
    numbers: Any = each if isinstance(each, Sequence) else (None, each)
    if len(numbers) == 2 and _is_index(numbers[1]) and (numbers[0] is None or _is_index(numbers[0])):
        return numbers[0], numbers[1]
    raise SelectionError(
        f"--heads {each!r:.60} is no head; give heads such as 3, or (layer, head) pairs such as (4, 1)"
    )


def _is_index(value: object) -> bool:
    return type(value) is int and value >= 0
