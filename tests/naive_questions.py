"""The slow twin of every question: one forward for every row of a table, and definitions written down one by one.

``naive_answer`` takes the words of a question and returns its table. It is made to be read: nothing is batched or
carried, and two runs are compared by subtracting them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import polars as pl
import torch
from torch import Tensor
from twin_forward import Cut, Seen, look, with_plain_attention

Row = dict[str, Any]
SIZE = "baseline_size"
"""An extra column: the length of the baseline vector, which says what a subtraction can resolve."""


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
        return look(
            self.model, self.forced, Cut(hidden=hidden, intervention=intervention, stand_ins=self._stand_ins())
        )

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


def naive_answer(
    model: Any,
    prompt: Sequence[int],
    *,
    text: Callable[[int], str] = str,
    special: Sequence[int] = (),
    **words: Any,
) -> pl.DataFrame:
    """The table of a question; ``text`` gives a token's text. ``baseline_size`` stands last."""
    twin = Twin(model, prompt, Asked(**words))
    rows_of = layer_rows if twin.asked.read == "layer" else output_rows
    rows = []
    for label in twin.layer_labels:
        for query in twin.queries:
            for group in twin.groups:
                if min(group) <= query:
                    for row in rows_of(twin, label, query, group, text):
                        named = labels(twin, label, query, group, text=text, special=special)
                        rows.append(named | row)
    return pl.DataFrame(rows, infer_schema_length=None)


def labels(
    twin: Twin,
    label: int | None,
    query: int,
    group: tuple[int, ...],
    *,
    text: Callable[[int], str],
    special: Sequence[int],
) -> Row:
    """What a row stands for."""
    ids = [twin.prompt[p] for p in group]
    row: Row = {"layer": label, "token_masked": "".join(map(text, ids)), "token_position": group[0]}
    optional: Row = {
        "query_position": query if twin.asked.query != "last" else None,
        "masked_positions": "+".join(map(str, group)) if twin.asked.mask != "tokens" else None,
    }
    row |= {name: value for name, value in optional.items() if value is not None}
    if "token_id" in twin.asked.columns:
        row["token_id"] = ids[0] if len(ids) == 1 else None
    if "is_special" in twin.asked.columns:
        row["is_special"] = ids[0] in special if len(ids) == 1 else None
    return row


def layer_rows(twin: Twin, label: int, query: int, group: tuple[int, ...], text: Callable[[int], str]) -> Iterator[Row]:
    """One row for every site of the layer ``label``."""
    seen = twin.run(label, query, group)
    blind = twin.is_blind(seen, query, [layer for layer in twin.cut_layers(label) if layer <= label])
    ours, theirs = (sites(twin, run, label, query) for run in (twin.baseline, seen))
    mass = twin.baseline.layers[label]["pattern"][:, query, list(group)].sum(-1)
    for name, baseline in ours.items():
        row: Row = {"variant": name} | compare(baseline, None if blind else theirs[name], twin.asked.columns)
        if "attention_mass" in twin.asked.columns:
            kind, _, head = name.partition("_")
            row["attention_mass"] = float(mass[int(head)] if kind in ("Head", "Result") else mass.mean())
        yield row


def sites(twin: Twin, seen: Seen, layer: int, query: int) -> dict[str, Tensor]:
    """Every vector that is read in a layer, at the query."""
    shown = seen.layers[layer]
    heads = range(twin.num_heads)
    z = [shown["z"][head, query] for head in heads]
    found = {
        "Full": shown["after"][query] - shown["before"][query],
        "Attn": shown["attn_out"][query],
        **{f"Head_{head}": z[head] for head in heads},
    }
    if "MLP" in twin.asked.sites:
        found["MLP"] = shown["mlp_out"][query]
    if "Resid" in twin.asked.sites:
        found["Resid"] = shown["after"][query]
    if "Result_h" in twin.asked.sites:
        parts = twin.model.base_model.layers[layer].self_attn.o_proj.weight.chunk(twin.num_heads, dim=1)
        found |= {f"Result_{head}": parts[head].detach() @ z[head] for head in heads}
    return found


def output_rows(
    twin: Twin, label: int | None, query: int, group: tuple[int, ...], text: Callable[[int], str]
) -> Iterator[Row]:
    """One row: the answer of the model."""
    seen = twin.run(label, query, group)
    blind = twin.is_blind(seen, query, twin.cut_layers(label))
    before, after = (run.logits.double().log_softmax(-1) for run in (twin.baseline, seen))
    answer = twin.asked.answer or [int(before[query].argmax())]
    where = twin.scored_positions(query)
    plain, masked = (float(run[where, answer].sum()) for run in (before, after))
    kl = float((before[query].exp() * (before[query] - after[query])).sum())
    row = compare(twin.baseline.final[query], None if blind else seen.final[query], twin.asked.columns)
    row |= {"kl_divergence": kl, "answer": "".join(map(text, answer)), "answer_logprob": plain}
    row |= {"answer_logprob_masked": masked, "answer_logprob_change": masked - plain}
    row |= {"top_token_masked": text(int(after[query].argmax()))}
    undefined = ("kl_divergence", "answer_logprob_masked", "answer_logprob_change", "top_token_masked")
    yield row | (dict.fromkeys(undefined) if blind else {})


def compare(baseline: Tensor, masked: Tensor | None, columns: Sequence[str]) -> Row:
    """|m - b| and 1 - cos(b, m); None where the masked run is undefined, or a vector has no direction."""
    b = baseline.double()
    m = b.new_full(b.shape, torch.nan) if masked is None else masked.double()
    size, l2 = float(b.norm()), float((m - b).norm())
    cosine = 1 - float(b @ m / (b.norm() * m.norm()))
    row = {"l2_distance": defined(l2), "cosine_distance": defined(cosine)}
    if "relative_l2" in columns:
        row["relative_l2"] = defined(l2 / size) if size else None
    return row | {SIZE: size}


def defined(value: float) -> float | None:
    return None if value != value else value
