"""Which tokens stand for which characters of a prompt's text."""

from functools import cached_property

import numpy as np
from jaxtyping import Int

from engine.errors import PromptError
from engine.text.prompts import Prompt

Group = tuple[str, tuple[int, ...]]
"""A name, and positions: sorted, without repetition, at least one."""


class Characters:
    """The text of a prompt that was read with offsets."""

    def __init__(self, prompt: Prompt) -> None:
        assert prompt.text is not None, "the prompt was read without offsets"
        self._prompt, self.text = prompt, prompt.text

    @cached_property
    def of_tokens(self) -> Int[np.ndarray, "s 2"]:
        """The first and past the last character of each token; (-1, -1) for one that stands for none."""
        return np.array([span or (-1, -1) for span in self._prompt.offsets], dtype=np.int64)

    @cached_property
    def ordinary(self) -> str:
        """The text, with spaces in the place of special tokens that are written out in it."""
        text = self.text
        for span, special in zip(self._prompt.offsets, self._prompt.special, strict=True):
            if special and span:
                text = text[: span[0]] + " " * (span[1] - span[0]) + text[span[1] :]
        return text

    def tokens(self, first: int, past: int) -> tuple[int, ...]:
        """The positions that stand for any of the characters from ``first`` up to ``past``, exclusive."""
        starts, ends = self.of_tokens.T
        return tuple(np.flatnonzero((starts < past) & (ends > first)).tolist())

    def group(self, first: int, past: int, name: str | None) -> Group:
        """Those positions as a group, called by its text unless it has a name.

        Raises ``PromptError`` for characters beyond the text, and where no token stands for them.
        """
        if past > len(self.text):
            raise PromptError(
                f"there are no characters {first} to {past - 1} (first to last) in a prompt of {len(self.text)} "
                "characters, counted from 0; choose others, or leave the prompt out"
            )
        positions = self.tokens(first, past)
        if not positions:
            raise PromptError(
                f"no token stands for the characters {first} to {past - 1} of the prompt's {len(self.text)}: "
                f"{self.text[first:past]!r:.60}; choose others, or leave the prompt out"
            )
        return self.text[first:past] if name is None else name, positions


def group_at(prompt: Prompt, positions: tuple[int, ...], name: str | None) -> Group:
    """Given positions as a group, called by its pieces unless it has a name.

    Raises ``PromptError`` for a position beyond the prompt.
    """
    if positions[-1] >= len(prompt):
        raise PromptError(
            f"there is no token {positions[-1]} in a prompt of {len(prompt)} tokens, counted from 0; "
            "choose others, or leave the prompt out"
        )
    return "".join(prompt.pieces[position] for position in positions) if name is None else name, positions
