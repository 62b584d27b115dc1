"""Numbers of a config with which no model can be computed, refused by the name of their field."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from engine.errors import ModelError
from engine.model.families.family import Family


@dataclass(frozen=True)
class Kind:
    """What a field must be, in words and as a test."""

    words: str
    holds: Callable[[Any], bool]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


COUNT = Kind("a whole number of at least 1", lambda value: _is_whole(value) and value >= 1)
NUMBER = Kind("a finite number", _is_finite)
NOT_ZERO = Kind("a finite number other than 0", lambda value: _is_finite(value) and value != 0)
POSITIVE = Kind("a finite number above 0", lambda value: _is_finite(value) and value > 0)
NOT_NEGATIVE = Kind("a whole number of at least 0", lambda value: _is_whole(value) and value >= 0)
EPSILON = Kind("a finite number of at least 0", lambda value: _is_finite(value) and value >= 0)

FIELDS = {
    **dict.fromkeys(("vocab_size", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim"), COUNT),
    **dict.fromkeys(("decoder_sparse_step", "max_position_embeddings"), COUNT),
    **dict.fromkeys(("num_hidden_layers", "num_local_experts"), NOT_NEGATIVE),
    **dict.fromkeys(("attention_multiplier", "embedding_multiplier", "residual_multiplier"), NUMBER),
    "logits_scaling": NOT_ZERO,
    **dict.fromkeys(("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping"), POSITIVE),
}
"""What transformers calls them in all families; those that a config lacks, or leaves null, have other rules."""


def require_settings(family: Family, config: Any) -> None:
    """Raise ``ModelError`` for a number that cannot be, and for a list that is shorter than the layers."""
    for field, kind in {**FIELDS, family.eps: EPSILON}.items():
        _require(field, getattr(config, field, None), kind)
    _require_length("no_rope_layers", config)
    for layer in range(config.num_hidden_layers):
        _require("sliding_window", family.window(config, layer), COUNT)


def _require(field: str, value: Any, kind: Kind) -> None:
    if value is not None and not kind.holds(value):
        raise ModelError(f"{field} is {value!r:.40} in the model's config; it must be {kind.words}")


def _require_length(field: str, config: Any) -> None:
    found = getattr(config, field, None)
    if found is not None and len(found) < config.num_hidden_layers:
        raise ModelError(
            f"{field} in the model's config has {len(found)} entries for {config.num_hidden_layers} layers; "
            "it must have one for each"
        )
