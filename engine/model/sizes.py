"""How large a model can be by its config, before anything is made of it."""

import re
from collections.abc import Mapping
from typing import Any

COUNTS = re.compile(r"(?!max_).*(layers?|experts)")
"""Fields that say how many parts a model has: transformers makes lists as long as they say, and modules."""
MOST_PARTS = 10_000


def require_countable(raw: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` for more layers or experts than any model has, in the words of a config at any depth."""
    for name, value in raw.items():
        if isinstance(value, Mapping):
            require_countable(value)
        elif COUNTS.fullmatch(str(name)) and isinstance(value, int | float) and not value <= MOST_PARTS:
            raise ValueError(f"{name} is {value!r:.40}, and no model has more than {MOST_PARTS:,}")
