"""The static cost of a forward and of whole tables, and the time that the device needs for it at the least.

Counted are the weight matrices of the layers, which every row meets, and where logits are read the vocabulary head.
Attention itself, norms and reading the embedding are left out: at the lengths measured here they are small.
"""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from benchmarks.machine import Ceilings
from benchmarks.workloads import layer_weights


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Bytes of weights that must be read once, and the arithmetic of all rows."""

    num_bytes: int
    flop: int

    def reading_seconds(self, ceilings: Ceilings) -> float:
        """Time to read the weights once at the measured bandwidth."""
        return self.num_bytes / ceilings.bytes_per_second

    def computing_seconds(self, ceilings: Ceilings) -> float:
        """Time of the arithmetic at the measured rate of matrix products."""
        return self.flop / ceilings.flop_per_second


def forward_cost(model: PreTrainedModel, *, length: int) -> Cost:
    """One plain forward over ``length`` tokens, without the vocabulary head."""
    weights = list(layer_weights(model))
    num_bytes = sum(weight.numel() * weight.element_size() for weight in weights)
    return Cost(num_bytes=num_bytes, flop=2 * length * sum(weight.numel() for weight in weights))


def table_cost(model: PreTrainedModel, *, length: int, num_tokens: int) -> Cost:
    """One table read at the final position.

    Every token meets every matrix, and every masked token adds a row to all but q, k and v. In the last layer the keys
    and values of all tokens are needed, and behind them the rows of the query alone.
    """
    *others, last = model.base_model.layers
    flop = sum(2 * (length * _size(layer) + num_tokens * _size(layer, *"oud")) for layer in others)
    flop += 2 * (length * _size(last, *"kv") + _size(last, "q") + (1 + num_tokens) * _size(last, *"oud"))
    return Cost(num_bytes=forward_cost(model, length=length).num_bytes, flop=flop)


def head_cost(model: Any, *, rows: int) -> Cost:
    """Logits of so many rows."""
    weight = model.get_output_embeddings().weight
    return Cost(num_bytes=weight.numel() * weight.element_size(), flop=2 * rows * weight.numel())


def knockout_rows_cost(model: PreTrainedModel, *, num_tokens: int) -> Cost:
    """Attention knockout in windows of one layer: the rows that travel, without the baseline and without logits.

    A row for every masked token joins in every layer, where it shares q, k and v with the baseline, and from the next
    layer on meets every matrix up to the last one.
    """
    layers = model.base_model.layers
    flop = sum(2 * num_tokens * (_size(layer, *"oud") + place * _size(layer)) for place, layer in enumerate(layers))
    return Cost(num_bytes=forward_cost(model, length=1).num_bytes, flop=flop)


def _size(layer: Any, *parts: str) -> int:
    """Weights of a layer's matrices: q, k, v, o, u (gate and up), d; all of them when none is named."""
    attention, mlp = layer.self_attn, layer.mlp
    matrices = {
        "q": [attention.q_proj],
        "k": [attention.k_proj],
        "v": [attention.v_proj],
        "o": [attention.o_proj],
        "u": [mlp.gate_proj, mlp.up_proj],
        "d": [mlp.down_proj],
    }
    return sum(matrix.weight.numel() for part in parts or matrices for matrix in matrices[part])
