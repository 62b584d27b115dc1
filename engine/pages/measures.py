"""What the page calls the columns of numbers, and which of them have two directions."""

from typing import Any

from engine.tables.columns import CELLS
from engine.tables.effects import EFFECT_COLUMNS
from engine.tables.table import IMPACT_COLUMNS, PROMPT_ID

MEASURES: dict[str, dict[str, Any]] = {
    "cosine_distance": {
        "label": "cosine distance",
        "diverging": False,
        "note": "1 - cos of unmasked and masked vector",
    },
    "l2_distance": {"label": "L2 distance", "diverging": False, "note": "length of masked minus unmasked vector"},
    "attention_mass": {"label": "attention mass", "diverging": False, "note": "share of the query's attention"},
    "relative_l2": {"label": "relative L2", "diverging": False, "note": "L2 over the length of the unmasked vector"},
    "kl_divergence": {
        "label": "KL divergence (nats)",
        "diverging": False,
        "note": "from the unmasked to the masked run",
    },
    "answer_logprob_change": {
        "label": "change of log-probability (nats)",
        "diverging": True,
        "note": "of the answer; negative: it becomes less likely",
    },
    "answer_logprob": {"label": "log-probability unmasked (nats)", "diverging": False, "note": "of the answer"},
    "answer_logprob_masked": {"label": "log-probability masked (nats)", "diverging": False, "note": "of the answer"},
}

COLUMNS = list(
    dict.fromkeys(
        (
            PROMPT_ID,
            *IMPACT_COLUMNS,
            *EFFECT_COLUMNS,
            "query_position",
            "masked_positions",
            "token_id",
            "is_special",
            *CELLS,
        )
    )
)
"""Columns of the CSV that a page makes, in the order of a results file."""
