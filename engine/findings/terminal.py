"""Text for a terminal: signs that take two columns or none, short numbers, tables side by side."""

import re
import unicodedata
from collections.abc import Sequence
from itertools import zip_longest

COLOURING = re.compile("\x1b\\[[0-9;]*m")
HALF_WIDTH, TEXT_WIDTH, BAR_WIDTH = 48, 18, 20


def width(text: str) -> int:
    """Columns that ``text`` takes on a terminal; words that set its colours take none."""
    text = COLOURING.sub("", text)
    marks = sum(unicodedata.category(sign) in ("Mn", "Me", "Cf") for sign in text)
    return len(text) - marks + sum(unicodedata.east_asian_width(sign) in ("W", "F") for sign in text)


def quoted(token: str, *, columns: int = TEXT_WIDTH) -> str:
    """A token as Python would write it: spaces stay visible, line breaks are escaped, no direction mark leaks out."""
    text = _cut(repr(token), columns)
    mixed = any(unicodedata.bidirectional(sign) in ("R", "AL") for sign in text)
    return f"{text}\N{LEFT-TO-RIGHT MARK}" if mixed else text


def plain(text: str, *, columns: int = TEXT_WIDTH) -> str:
    """Text on one line, with a question mark for each sign that would not show."""
    return _cut("".join(sign if sign.isprintable() else "?" for sign in text), columns)


def plural(count: int | None, noun: str) -> str:
    """``1 row``, ``2,000 rows``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def number(value: float | None) -> str:
    """Three significant digits, two where the exponent is long, in at most seven characters (a sign not counted)."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    if 1e-4 <= abs(value) < 1e6:
        return f"{value:#.3g}".rstrip(".") if abs(value) < 999.5 else f"{value:.0f}"
    digits, _, exponent = f"{value:.2e}".partition("e")
    return f"{digits}e{int(exponent)}" if abs(int(exponent)) < 10 else f"{value:.1e}"


def bar(share: float) -> str:
    """A bar as long as ``share``, 0 to 1, of its full width."""
    eighths = round(share * BAR_WIDTH * 8)
    return ("█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8]).strip().ljust(BAR_WIDTH)


def aligned(rows: Sequence[Sequence[str]], *, gap: str = "  ") -> list[str]:
    """Rows of text, the first a header, in columns; numbers to the right, other text to the left."""
    columns = [_column(cells) for cells in zip(*rows, strict=True)]
    return [gap.join(row).rstrip() for row in zip(*columns, strict=True)]


def side_by_side(left: list[str], right: list[str]) -> list[str]:
    """Two tables beside each other where both are narrow enough, otherwise one below the other."""
    if max(map(width, left + right)) > HALF_WIDTH:
        return [*left, "", *right]
    pairs = zip_longest(left, right, fillvalue="")
    return [f"{_padded(one, HALF_WIDTH)}  {other}".rstrip() for one, other in pairs]


def _column(cells: Sequence[str]) -> list[str]:
    widest = max(map(width, cells))
    numeric = all(re.fullmatch(r"-|-?[0-9][0-9.,e+-]*", cell) for cell in cells[1:])
    return [_padded(cell, widest, right=numeric) for cell in cells]


def _padded(text: str, columns: int, *, right: bool = False) -> str:
    space = " " * (columns - width(text))
    return space + text if right else text + space


def _cut(text: str, columns: int) -> str:
    if width(text) <= columns:
        return text
    text = text[: 2 * columns]
    while width(text) >= columns:
        text = text[:-1]
    return f"{text}…"
