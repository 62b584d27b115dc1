"""Lists of indices as people write them: ``0-5,9``."""

import re

from engine.errors import SelectionError

MOST_INDICES = 100_000


def parse_indices(text: str, *, what: str) -> list[int]:
    """The sorted indices of a list such as ``0-5,9`` (ranges include both ends; no index is listed twice).

    Raises ``SelectionError`` when ``text`` is not such a list or lists more than ``MOST_INDICES``; ``what`` names the
    option in the message.
    """
    ranges = [_ends(part, text, what=what) for part in text.split(",")]
    if sum(last - first + 1 for first, last in ranges) > MOST_INDICES:
        raise SelectionError(f"{what} {text!r:.60} lists more than {MOST_INDICES:,} indices; choose fewer")
    return sorted({index for first, last in ranges for index in range(first, last + 1)})


def _ends(part: str, text: str, *, what: str) -> tuple[int, int]:
    """The first and the last index of one ``part`` of the list ``text``."""
    match = re.fullmatch(r"\s*([0-9]{1,9})\s*(?:-\s*([0-9]{1,9})\s*)?", part, re.ASCII)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if last < first:
        raise SelectionError(f"{what} {text!r:.60} is not a list of indices; write it like 0-5,9 (first-last, from 0)")
    return first, last
