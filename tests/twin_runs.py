"""The forwards that a question needs, one for every row, each made once."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from twin_forward import Cut, Seen, look, with_plain_attention


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The words of a question, as ``AttentionMasker.run`` takes them; ``answer`` and groups are already ids."""

    layers: Sequence[int] | None = None
    tokens: Sequence[int] | None = None
    cut: str = "layer"
    hidden_from: str | None = None
    read: str = "layer"
    query: str | Sequence[int] = "last"
    intervention: str = "mask"
    heads: Sequence[Any] | None = None
    mask: str | Sequence[Sequence[int]] = "tokens"
    sites: Sequence[str] = ()
    columns: Sequence[str] = ()
    answer: Sequence[int] | None = None


class Twin:
    """A model, a prompt and a question: the forwards that it needs, each made once."""

    def __init__(self, model: Any, prompt: Sequence[int], asked: Asked) -> None:
        self.asked, self.prompt = asked, list(prompt)
        assert len(asked.answer or []) < 2 or asked.query == "last", "an answer of several tokens follows the prompt"
        self.model = with_plain_attention(model)
        self.num_layers, self.num_heads = model.config.num_hidden_layers, model.config.num_attention_heads
        self.forced = [*self.prompt, *(asked.answer or [])[:-1]]
        self.baseline = look(self.model, self.forced)
        self.masked = cache(self._masked)

    @property
    def hidden_from(self) -> str:
        local = self.asked.cut == "layer" and self.asked.read == "layer"
        return self.asked.hidden_from or ("all" if local else "others")

    @property
    def queries(self) -> list[int]:
        last = len(self.prompt) - 1
        named: dict[Any, list[int]] = {"last": [last], "all": list(range(last + 1))}
        return named[self.asked.query] if isinstance(self.asked.query, str) else list(self.asked.query)

    @property
    def groups(self) -> list[tuple[int, ...]]:
        if self.asked.mask != "tokens":
            return [tuple(group) for group in self.asked.mask]
        return [(p,) for p in (range(len(self.prompt)) if self.asked.tokens is None else self.asked.tokens)]

    @property
    def layer_labels(self) -> list[int | None]:
        """What the column ``layer`` holds: centres of windows, or layers that are read."""
        if self.asked.cut == "all" and self.asked.read == "output":
            return [None]
        return list(range(self.num_layers) if self.asked.layers is None else self.asked.layers)

    def cut_layers(self, label: int | None) -> list[int]:
        """The layers in which keys are hidden."""
        if self.asked.cut == "all":
            return list(range(self.num_layers))
        assert label is not None
        size = 1 if self.asked.cut == "layer" else int(self.asked.cut.removeprefix("window:"))
        first = label - size // 2
        return [layer for layer in range(first, first + size) if 0 <= layer < self.num_layers]

    def scored_positions(self, query: int) -> list[int]:
        """Where the tokens of the answer are predicted."""
        return list(range(query, query + len(self.asked.answer or [None])))

    def run(self, label: int | None, query: int, group: tuple[int, ...]) -> Seen:
        """The forward in which this group is hidden; only a cut from the query alone depends on the query."""
        queries = tuple(self.scored_positions(query) if self.hidden_from == "query" else range(len(self.forced)))
        return self.masked(tuple(self.cut_layers(label)), queries, group)

    def _masked(self, layers: tuple[int, ...], queries: tuple[int, ...], group: tuple[int, ...]) -> Seen:
        length = len(self.forced)
        hidden = torch.zeros(self.num_layers, self.num_heads, length, length, dtype=torch.bool)
        for layer in layers:
            for head in self._heads(layer):
                for i in queries:
                    for k in group:
                        hidden[layer, head, i, k] = i != k or self.hidden_from != "others"
        intervention = "mask" if self.asked.intervention == "mask" else "value"
        return look(self.model, self.forced, Cut(hidden=hidden, intervention=intervention, stand_ins=self._stand_ins()))

    def _heads(self, layer: int) -> list[int]:
        if self.asked.heads is None:
            return list(range(self.num_heads))
        pairs = [each if isinstance(each, tuple) else (layer, each) for each in self.asked.heads]
        return [head for of, head in pairs if of == layer]

    def _stand_ins(self) -> Tensor:
        """The mean of the unmasked run's values over the prompt (value-mean), or zero."""
        values = torch.stack([shown["values"] for shown in self.baseline.layers])
        mean = values[:, :, : len(self.prompt)].mean(2)
        return mean if self.asked.intervention == "value-mean" else torch.zeros_like(mean)

    def is_blind(self, seen: Seen, query: int, layers: Sequence[int]) -> bool:
        """Whether the query has nothing to attend to, with any head, in one of the layers."""
        return any(bool(seen.layers[layer]["blind"][:, query].all()) for layer in layers)
