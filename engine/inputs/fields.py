"""From the named values of one row to an ``Entry``: which column is the prompt, which the id, and what is kept.

What is kept can be stored as a column of a table: whole numbers of 64 bits, floats, booleans, text that is valid
Unicode, dates and times. Lists and objects become their JSON text, bytes become hex digits, other values their text.
"""

import datetime
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from engine.errors import InputError
from engine.inputs.entries import Entry, Id

PROMPT_COLUMNS = ("prompt", "text")
MOST_SHOWN = 1000
"""Characters of a defective row that are kept to show it."""
_MISSING = object()
_KINDS = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object", str: "text"}
_KEPT = (float, bool, type(None), datetime.date, datetime.datetime)


@dataclass(frozen=True)
class Wanted:
    """What the user asked of a file: ``name`` is how errors call it, the columns are None where none was named."""

    name: str
    prompt_column: str | None = None
    id_column: str | None = None


class Fields:
    """Turns the rows of one file, in their order, into entries."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.prompt_column: str | None = None
        self._whole_ids: bool | None = None  # the first id decides

    def choose(self, names: list[str], text_names: Iterable[str] = ()) -> str:
        """Set the prompt's column: the one named, ``prompt``, ``text``, the only one, or the only one with text.

        Raises ``InputError`` for a column that was named and is not there, and where there is a choice left.
        """
        for option, asked in (("prompt", self.wanted.prompt_column), ("id", self.wanted.id_column)):
            if asked is not None and asked not in names:
                raise InputError(
                    f"{self.wanted.name} has no column {asked!r}, which --{option}-column names; "
                    f"its columns are: {_listed(names)}"
                )
        chosen = self.wanted.prompt_column
        self.prompt_column = self._default(names, text_names) if chosen is None else chosen
        return self.prompt_column

    def entry(self, row: int, values: Mapping[str, Any]) -> Entry:
        """Row ``row``, given as its values by column, after the prompt's column was chosen."""
        prompt_column, id_column = self.prompt_column, self.wanted.id_column
        assert prompt_column is not None
        prompt = values.get(prompt_column, _MISSING)
        defect = None if type(prompt) is str else _prompt_defect(prompt, prompt_column)
        if defect:
            prompt = brief(as_text(dict(values) if prompt is _MISSING else prompt))
        prompt_id: Id | None = row
        if id_column is not None:
            prompt_id, id_defect = self._id(values.get(id_column))
            defect = defect or id_defect
        columns = {
            name if name.isascii() else valid(name): storable(value)
            for name, value in values.items()
            if name != prompt_column and name != id_column
        }
        return Entry(row, prompt_id, prompt, columns, defect)

    def bare(self, row: int, prompt: Any) -> Entry:
        """Row ``row``, when it is a prompt and nothing else."""
        defect = None if type(prompt) is str else _prompt_defect(prompt, "prompt")
        if defect:
            prompt = brief(as_text(prompt))
        if self.wanted.id_column is None:
            return Entry(row, row, prompt, defect=defect)
        return Entry(row, None, prompt, defect=defect or "it has no id")

    def defective(self, row: int, text: str, defect: str) -> Entry:
        """Row ``row``, of which nothing but ``text`` can be said."""
        return Entry(row, row if self.wanted.id_column is None else None, brief(text), defect=defect)

    def _default(self, names: list[str], text_names: Iterable[str]) -> str:
        known = [name for name in PROMPT_COLUMNS if name in names and name != self.wanted.id_column]
        for found in (known[:1], names, text_names):
            candidates = [name for name in found if name != self.wanted.id_column]
            if len(candidates) == 1:
                return candidates[0]
        raise InputError(
            f"{self.wanted.name} does not say which column holds the prompts; "
            f"choose one with --prompt-column; its columns are: {_listed(names)}"
        )

    def _id(self, value: Any) -> tuple[Id | None, str | None]:
        """The id that a row gives, or why it gives none."""
        if value is None or value == "" or value != value:
            return None, "it has no id"
        if isinstance(value, bool | list | dict):
            return None, f"its id is {_KINDS[type(value)]}, expected text or a whole number"
        kept = storable(value)
        if self._whole_ids is None:
            self._whole_ids = type(kept) is int
        if not self._whole_ids:
            return valid(str(kept)), None
        if type(kept) is int:
            return kept, None
        return None, f"its id {brief(str(kept), 80)!r} is no whole number of 64 bits, as those before are"


def storable(value: Any) -> Any:
    """``value`` as a column keeps it."""
    kind = type(value)
    if kind is str:
        return value if value.isascii() else valid(value)
    if kind is int:
        return value if -(1 << 63) <= value < 1 << 63 else str(value)
    return value if kind in _KEPT else valid(as_text(value))


def as_text(value: Any) -> str:
    """Text as it is, bytes as hex digits, anything else as JSON where JSON has it."""
    if isinstance(value, str):
        return value
    if isinstance(value, list | dict | bool | None):
        return json.dumps(value, ensure_ascii=False, default=as_text)
    return value.hex() if isinstance(value, bytes) else str(value)


def valid(text: str) -> str:
    """``text`` with bytes or code units that are no text written as escapes, such as ``\\udcff``."""
    return text.encode("utf-8", "backslashreplace").decode()


def brief(text: str, most: int = MOST_SHOWN) -> str:
    """The beginning of ``text``, as text that any file takes."""
    return valid(text if len(text) <= most else f"{text[:most]}…")


def _prompt_defect(prompt: Any, column: str) -> str | None:
    """Why ``prompt``, which is not text, is none."""
    if prompt is _MISSING:
        return f"it has no {brief(column, 80)!r}"
    if prompt is None:
        return "its prompt is null"
    if type(prompt) is list:
        whole = all(type(token_id) is int for token_id in prompt)
        return None if whole else "its prompt is a list with something else than token ids, which are whole numbers"
    return f"its prompt is {_KINDS.get(type(prompt), 'no text')}, expected text or a list of token ids"


def _listed(names: list[str]) -> str:
    return brief(", ".join(repr(name) for name in names), 300) or "none"
