"""What a page holds, as text that is safe inside it: numbers in base64, everything else as JSON."""

import base64
import json
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float

UNSAFE = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&"}


def packed(numbers: Float[np.ndarray, "..."]) -> str:
    """The numbers as little-endian float32 in base64; NaN stays NaN, which a page shows as undefined."""
    return base64.b64encode(np.ascontiguousarray(numbers, dtype="<f4").tobytes()).decode("ascii")


def packed_size(numbers: Float[np.ndarray, "..."]) -> int:
    """How many bytes of a page ``packed`` takes."""
    return 4 * -(-4 * numbers.size // 3)


def packed_texts(rows: Iterable[Sequence[str | None]]) -> dict[str, object]:
    """Rows of texts that often repeat: every text once, and for each cell its place."""
    places: dict[str | None, int] = {}
    codes = [[places.setdefault(text, len(places)) for text in row] for row in rows]
    return {"texts": list(places), "codes": codes}


def script_json(value: object) -> str:
    """JSON that cannot end the script element around it: ASCII alone, with the signs of markup as escapes."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).translate(UNSAFE)
