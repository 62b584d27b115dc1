"""One row of the input: a prompt with its id and the columns that came with it, or why it is none."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Id = int | str
MOST_ID = 1 << 63


@dataclass(frozen=True, slots=True)
class Entry:
    """Row ``row`` (from 0) of the input; ``defect`` says why it holds no prompt."""

    row: int
    prompt_id: Id | None
    prompt: Any
    columns: Mapping[str, Any] = field(default_factory=dict)
    defect: str | None = None

    @property
    def text(self) -> str | None:
        """The prompt's text; None for token ids."""
        return self.prompt if isinstance(self.prompt, str) else None


def entries_of(prompts: Iterable[Any] | Mapping[Any, Any]) -> Iterator[Entry]:
    """The entries of a mapping of ids to prompts, or of any other iterable, whose ids are 0, 1, 2, ...

    Ids are all whole numbers, or all texts.
    """
    if not isinstance(prompts, Mapping):
        yield from (Entry(row, row, prompt) for row, prompt in enumerate(prompts))
        return
    numbers = all(isinstance(key, int) and not isinstance(key, bool) and -key < MOST_ID > key for key in prompts)
    for row, (key, prompt) in enumerate(prompts.items()):
        yield Entry(row, key if numbers else str(key), prompt)
