"""What is hidden together: a rule makes groups of the positions of each prompt."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from engine.errors import PromptError
from engine.text.characters import Characters, Group, group_at
from engine.text.knockouts import select
from engine.text.prompts import Prompt
from engine.text.spans import Span


@dataclass(frozen=True)
class Groups:
    """The groups of positions of one prompt that are hidden together; each is sorted, without repetition, not empty."""

    names: tuple[str, ...]
    positions: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.names)


class Rule(ABC):
    """How groups are made. A rule looks at one prompt at a time, so it serves a set of any size."""

    @property
    def is_tokens(self) -> bool:
        """Whether each token is a group of its own."""
        return False

    @property
    def needs_offsets(self) -> bool:
        """Whether prompts must be read with ``Reading(offsets=True)``."""
        return False

    @property
    def needs_special(self) -> bool:
        """Whether prompts must be read with ``Reading(special=True)``."""
        return False

    def groups(self, prompt: Prompt, *, prompt_id: Any = None) -> Groups:
        """The groups of one prompt; of two with equal names and positions one is kept.

        Raises ``PromptError`` where the rule finds nothing, or asks for what the prompt does not have;
        ``SelectionError`` for a chosen token that does not exist.
        """
        assert prompt.special or not self.needs_special, "the prompt was read without special tokens"
        names, positions = zip(*dict.fromkeys(self._found(prompt, prompt_id)), strict=True)
        return Groups(names, positions)

    @abstractmethod
    def _found(self, prompt: Prompt, prompt_id: Any) -> Iterable[Group]:
        """At least one group. Raises as ``groups`` does."""


@dataclass(frozen=True)
class Tokens(Rule):
    """Each token, or each of the chosen."""

    tokens: Sequence[int] | None = None
    skip_special: bool = False

    @property
    def is_tokens(self) -> bool:
        return True

    @property
    def needs_special(self) -> bool:
        return self.skip_special

    def _found(self, prompt: Prompt, prompt_id: Any) -> list[Group]:
        chosen = select(self.tokens, len(prompt), what="token")
        return [(prompt.pieces[p], (p,)) for p in (_without_special(prompt, chosen) if self.skip_special else chosen)]


@dataclass(frozen=True)
class Words(Rule):
    """The tokens of each word: characters without whitespace or special tokens between them.

    A token that reaches over two words is the first one's; one that is special, or stands for no word, is its own.
    """

    skip_special: bool = False

    @property
    def needs_offsets(self) -> bool:
        return True

    @property
    def needs_special(self) -> bool:
        return self.skip_special

    def _found(self, prompt: Prompt, prompt_id: Any) -> list[Group]:
        text = Characters(prompt)
        words = [word.span() for word in re.finditer(r"\S+", text.ordinary)]
        tokens = text.of_tokens.tolist()
        nearest = np.searchsorted([end for _, end in words], text.of_tokens[:, 0], side="right").tolist()
        found: dict[tuple[int, int] | int, list[int]] = {}
        for position in _without_special(prompt, range(len(prompt))) if self.skip_special else range(len(prompt)):
            word = words[nearest[position]] if nearest[position] < len(words) else None
            found.setdefault(word if word and word[0] < tokens[position][1] else position, []).append(position)
        return [
            (prompt.pieces[key] if isinstance(key, int) else text.text[slice(*key)], tuple(positions))
            for key, positions in found.items()
        ]


@dataclass(frozen=True)
class Matches(Rule):
    """The tokens that each non-empty match of a pattern touches."""

    pattern: re.Pattern[str]

    @property
    def needs_offsets(self) -> bool:
        return True

    def _found(self, prompt: Prompt, prompt_id: Any) -> list[Group]:
        text = Characters(prompt)
        matches = [(match[0], text.tokens(*match.span())) for match in self.pattern.finditer(text.text)]
        found = [(name, positions) for name, positions in matches if name and positions]
        if not found:
            raise PromptError(
                f"the pattern {self.pattern.pattern!r:.60} matches nothing in the prompt's "
                f"{len(text.text)} characters; give another pattern, or leave the prompt out"
            )
        return found


@dataclass(frozen=True)
class Spans(Rule):
    """Spans of characters or positions, of every prompt or of the one with an id; ``origin`` is who gave them."""

    origin: str
    spans: tuple[Span, ...] = field(repr=False)

    @cached_property
    def needs_offsets(self) -> bool:
        return any(span.characters for span in self.spans)

    @cached_property
    def _rows(self) -> dict[str | None, list[int]]:
        """Which of the spans are those of each id."""
        rows: dict[str | None, list[int]] = {}
        for row, span in enumerate(self.spans):
            rows.setdefault(span.prompt_id, []).append(row)
        return rows

    def _found(self, prompt: Prompt, prompt_id: Any) -> list[Group]:
        own = [] if prompt_id is None else self._rows.get(str(prompt_id), [])
        rows = sorted([*self._rows.get(None, []), *own])
        if not rows:
            whom = "a prompt without id" if prompt_id is None else f"the prompt {str(prompt_id)!r:.60}"
            raise PromptError(f"{self.origin} has no span for {whom}; add one, or leave the prompt out")
        text = Characters(prompt) if self.needs_offsets else None
        return [_resolved(self.spans[row], prompt, text) for row in rows]


def _resolved(span: Span, prompt: Prompt, text: Characters | None) -> Group:
    if span.characters and text:
        return text.group(*span.characters, name=span.name)
    return group_at(prompt, span.positions, name=span.name)


def _without_special(prompt: Prompt, positions: Iterable[int]) -> list[int]:
    kept = [position for position in positions if not prompt.special[position]]
    if not kept:
        raise PromptError(
            f"every chosen one of the prompt's {len(prompt)} tokens is special, and special tokens are skipped; "
            "choose other tokens, or leave --skip-special out"
        )
    return kept
