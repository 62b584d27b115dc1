"""The slow twin of every question: one forward for every row of a table, and definitions written down one by one.

``naive_answer`` takes the words of a question and returns its table. It is made to be read: nothing is batched or
carried, and two runs are compared by subtracting them.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import polars as pl
import torch
from torch import Tensor, nn
from twin_forward import Seen
from twin_runs import Asked, Twin

from benchmarks.anatomy import anatomy_of, layers_of, multiplier_of

Row = dict[str, Any]
SIZE = "baseline_size"
"""An extra column: the length of the baseline vector, which says what a subtraction can resolve."""


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
                    named = labels(twin, label, query, group, text=text, special=special)
                    rows += [named | row for row in rows_of(twin, label, query, group, text)]
    table = pl.DataFrame(rows, infer_schema_length=None)
    if "query_position" not in table.columns:
        return table
    columns = [name for name in table.columns if name != "query_position"]
    columns.insert(columns.index("cosine_distance") + 1, "query_position")
    return table.select(columns)


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
        parts = output_weight(twin.model, layer).chunk(twin.num_heads, dim=1)
        found |= {f"Result_{head}": parts[head] @ z[head] * multiplier_of(twin.model) for head in heads}
    return found


def output_weight(model: Any, layer: int) -> Tensor:
    """The output projection's, output first."""
    projection = layers_of(model)[layer].get_submodule(anatomy_of(model).output)
    weight = projection.weight.detach()
    return weight if isinstance(projection, nn.Linear) else weight.T


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
