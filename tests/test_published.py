"""Two published methods, written down here from their papers, as questions of the engine.

Nothing is shared with the slow twin: value zeroing edits what a layer's value projection returns, attention knockout
edits the mask that a layer is given. Both run the model of transformers with its own attention.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from tiny import CASES, build, token_ids
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.oracle import float64_model
from engine import AttentionMasker
from engine.demo import demo_folder

BY_NAME = {case.name: case for case in CASES}
MODELS = ["qwen3", "qwen3-mqa", "qwen2", "llama-bias", "mistral-window"]
FACTS = [("The Eiffel Tower is in", " Paris"), ("The capital of France is", " Paris")]

pytestmark = pytest.mark.usefixtures("one_thread")


@contextmanager
def hooked(*hooks: Any) -> Iterator[None]:
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def layer_outputs(model: Any, ids: list[int], layer: int) -> torch.Tensor:
    """What the layer hands on, at every position."""
    seen: list[torch.Tensor] = []
    with torch.inference_mode(), hooked(model.model.layers[layer].register_forward_hook(lambda *a: seen.append(a[2]))):
        model.model(torch.tensor([ids]), use_cache=False)
    return seen[0][0]


def value_zeroing(model: Any, ids: list[int]) -> np.ndarray:
    """Mohebbi et al. 2023, arXiv 2301.12971, section 3: C[l, i, j] = cos-distance(x~_i without v_j, x~_i) in layer l.

    The value vector of token j is set to zero in all heads of one layer; attention weights stay as they are.
    """
    scores = np.zeros((len(model.model.layers), len(ids), len(ids)))
    for layer, block in enumerate(model.model.layers):
        original = layer_outputs(model, ids, layer)
        for j in range(len(ids)):

            def zero(module: Any, inputs: Any, values: torch.Tensor, j: int = j) -> torch.Tensor:
                return values.index_fill(1, torch.tensor([j]), 0.0)

            with hooked(block.self_attn.v_proj.register_forward_hook(zero)):
                replaced = layer_outputs(model, ids, layer)
            scores[layer, :, j] = 1 - torch.cosine_similarity(replaced, original, dim=-1).numpy()
    return scores


@pytest.mark.parametrize("name", MODELS)
def test_value_zeroing(name):
    case = BY_NAME[name]
    model, ids = float64_model(build(case)), token_ids(case)[:9]
    expected = value_zeroing(model, ids)
    table = AttentionMasker(model).run(ids, intervention="value-zero", query="all", sites=["Resid"])
    found = table.filter(pl.col("variant").cast(pl.String) == "Resid")
    assert found.height == len(model.model.layers) * len(ids) * (len(ids) + 1) // 2
    cells = found.select("layer", "query_position", "token_position", "cosine_distance")
    for layer, i, j, distance in cells.iter_rows():
        assert j <= i
        assert distance == pytest.approx(expected[layer, i, j], rel=1e-6, abs=1e-11)
    assert expected.max() > 1e-3


def answer_probability(model: Any, ids: list[int], answer: int, layers: Iterable[int] = (), source: int = 0) -> float:
    """The answer's probability when, in the layers, the last position can't attend to ``source``."""

    def block_edge(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        mask = torch.full((len(ids), len(ids)), -torch.inf, dtype=args[0].dtype).triu(1)
        mask[-1, source] = -torch.inf
        return args, kwargs | {"attention_mask": mask[None, None]}

    blocks = [model.model.layers[layer] for layer in layers]
    with torch.inference_mode(), hooked(*(b.register_forward_pre_hook(block_edge, with_kwargs=True) for b in blocks)):
        return float(model(torch.tensor([ids]), use_cache=False).logits[0, -1].double().softmax(-1)[answer])


def around(layer: int, *, window: int, num_layers: int) -> list[int]:
    """Geva et al. 2023, section 4: a window of k layers around the l-th; of an even one, more lie before it."""
    return [other for other in range(num_layers) if -(window // 2) <= other - layer < window - window // 2]


def knockout(model: Any, ids: list[int], answer: int, window: int) -> tuple[np.ndarray, float]:
    """Geva et al. 2023, arXiv 2304.14767: p(answer) with the edge source -> last blocked around l; and p without."""
    num_layers = len(model.model.layers)
    windows = [around(layer, window=window, num_layers=num_layers) for layer in range(num_layers)]
    blocked = [[answer_probability(model, ids, answer, layers, p) for p in range(len(ids))] for layers in windows]
    return np.array(blocked), answer_probability(model, ids, answer)


def assert_knockout(model: Any, ids: list[int], answer: int, window: int, table: pl.DataFrame, atol: float) -> None:
    expected, plain = knockout(model, ids, answer, window)
    assert table.height == expected.size
    assert np.abs(expected - plain).max() > 100 * atol, "blocking an edge has to matter"
    for layer, p, before, after, change in table.select(
        "layer", "token_position", "answer_logprob", "answer_logprob_masked", "answer_logprob_change"
    ).iter_rows():
        assert np.exp(before) == pytest.approx(plain, abs=atol)
        assert np.exp(after) == pytest.approx(expected[layer, p], abs=atol)
        assert np.exp(change) - 1 == pytest.approx(expected[layer, p] / plain - 1, rel=1e-3, abs=100 * atol)


@pytest.mark.parametrize("window", [1, 2, 3, 9])
@pytest.mark.parametrize("name", [name for name in MODELS if "window" not in name])
def test_attention_knockout(name, window):
    case = BY_NAME[name]
    model, ids = float64_model(build(case)), token_ids(case)[:7]
    answer = int(model(torch.tensor([ids])).logits[0, -1].argmax())
    table = AttentionMasker(model).run(ids, cut=f"window:{window}", hidden_from="query", read="output")
    assert table["answer"].unique().to_list() == [str(answer)]
    assert_knockout(model, ids, answer, window, table, 1e-9)


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize(("text", "answer"), FACTS)
def test_attention_knockout_of_a_known_fact(text, answer, window):
    model = AutoModelForCausalLM.from_pretrained(demo_folder(), dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(demo_folder())
    words: dict[str, Any] = {"cut": f"window:{window}", "hidden_from": "query", "read": "output", "answer": answer}
    table = AttentionMasker(model, tokenizer).run(text, **words)
    ids, (answer_id,) = tokenizer(text)["input_ids"], tokenizer(answer)["input_ids"]
    assert_knockout(model, ids, answer_id, window, table, 1e-5)
