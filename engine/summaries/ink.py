"""Colours of a terminal: which ones it can show, and a ramp that colour-blind readers can follow.

A coloured cell is filled, and its text is black or white, whichever stands out; so it reads the same on a light and on
a dark background.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PLAIN_DEPTH, DEPTH_256, TRUE_COLOUR = 0, 256, 1 << 24
CIVIDIS = (
    (0, 34, 78), (18, 53, 112), (59, 73, 108), (87, 93, 109), (112, 113, 115),
    (138, 134, 120), (165, 156, 116), (195, 179, 105), (225, 204, 85), (254, 232, 56),
)  # fmt: skip
"""Dark blue to yellow, even steps of lightness, the same to eyes with any kind of colour vision."""
CUBE = (0, 95, 135, 175, 215, 255)
"""The levels of red, green and blue among a terminal's 256 colours."""
RESET = "\x1b[0m"
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Ink:
    """What a stream can show: ``depth`` colours (0: none) on lines of ``columns``, None where no terminal reads."""

    depth: int = PLAIN_DEPTH
    columns: int | None = None

    def filled(self, text: str, share: float) -> str:
        """``text`` on the colour of ``share``, 0 to 1."""
        colour = ramp(share)
        return f"\x1b[{self._code(48, colour)};{self._code(38, contrast(colour))}m{text}{RESET}" if self.depth else text

    def block(self, share: float, *, width: int = 1) -> str:
        """Full blocks in the colour of ``share``."""
        return f"\x1b[{self._code(38, ramp(share))}m{'█' * width}{RESET}"

    def _code(self, place: int, colour: Colour) -> str:
        """The words that set a colour of the text (38) or behind it (48)."""
        if self.depth == TRUE_COLOUR:
            return f"{place};2;{colour[0]};{colour[1]};{colour[2]}"
        return f"{place};5;{nearest_256(colour)}"


PLAIN = Ink()


def ink_of(stream: Any, environ: Mapping[str, str] = os.environ) -> Ink:
    """What ``stream`` (any that has ``isatty``, or None) can show, as the terminal and the usual variables say.

    ``NO_COLOR`` forbids colours and ``FORCE_COLOR`` asks for them, in a pipe too; otherwise a terminal has those that
    ``COLORTERM`` and ``TERM`` tell.
    """
    watched = stream is not None and not stream.closed and stream.isatty()
    columns = shutil.get_terminal_size().columns if watched else None
    forced = environ.get("FORCE_COLOR", "0") not in ("", "0")
    if environ.get("NO_COLOR") or not (watched or forced):
        return Ink(PLAIN_DEPTH, columns)
    return Ink(max(_depth(environ), DEPTH_256 if forced else PLAIN_DEPTH), columns)


def ramp(share: float) -> Colour:
    """The colour of ``share``, 0 to 1, between the two nearest of the ramp."""
    place = min(max(share, 0.0), 1.0) * (len(CIVIDIS) - 1)
    low = min(int(place), len(CIVIDIS) - 2)
    red, green, blue = (round(a + (b - a) * (place - low)) for a, b in zip(CIVIDIS[low], CIVIDIS[low + 1], strict=True))
    return red, green, blue


def contrast(colour: Colour) -> Colour:
    """Black or white, whichever stands out more against ``colour`` (relative luminance of WCAG 2)."""
    linear = [(c / 255 / 12.92) if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)


def nearest_256(colour: Colour) -> int:
    """The number of the nearest of a terminal's 256 colours; the first 16 differ from one to the next and are left."""
    cube = [
        (16 + 36 * r + 6 * g + b, (CUBE[r], CUBE[g], CUBE[b])) for r in range(6) for g in range(6) for b in range(6)
    ]
    greys = [(232 + step, (8 + 10 * step,) * 3) for step in range(24)]
    return min(cube + greys, key=lambda each: sum((a - b) ** 2 for a, b in zip(each[1], colour, strict=True)))[0]


def _depth(environ: Mapping[str, str]) -> int:
    term = environ.get("TERM", "")
    if term in ("", "dumb"):
        return PLAIN_DEPTH
    if environ.get("COLORTERM", "").lower() in ("truecolor", "24bit"):
        return TRUE_COLOUR
    return DEPTH_256 if "256color" in term else PLAIN_DEPTH
