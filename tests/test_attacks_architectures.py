"""Random architectures of every fused family beside the naive way, and random questions beside the slow twin.

Errors are relative to the distance, or to ``FLOORS`` where those are larger. A deep run (``--attacks deep`` with a
``--tally FILE``) prints the largest, by family, and writes them to ``FILE.errors.json``.
"""

import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from attacks import MODE, attack
from comparing import assert_same
from hypothesis import assume, given
from hypothesis import strategies as st
from naive_questions import SIZE, naive_answer
from random_models import architectures
from random_questions import questions

from benchmarks.generic_cases import BASE, GENERIC_CASES, build_generic
from benchmarks.naive import run_naive
from benchmarks.naive_generic import naive_distances
from benchmarks.oracle import NoNarrowing, float64_model
from benchmarks.species import VARIATIONS
from benchmarks.zoo import build
from engine import AttentionMasker
from engine.errors import PromptError

RECORD = defaultdict(lambda: {"architectures": 0, "float64": 0.0, "float32": 0.0})
FLOORS = {"float64": (1e-6, 1e-6), "float32": (1e-3, 1e-6)}
"""L2 as a share of the vector, and cosine, below which errors are shares of these. Tokens that come again have nearly
the same value, and float32 knows the difference of two such values as well as their roundings let it."""
BOUNDS = {"float64": 1e-8, "float32": 1e-2}
"""What the largest errors have to stay below; scales of 12 and five layers multiply what was rounded."""
CPU = {"device": "cpu", "dtype": "float32"}
FIXED = ("head_dim", "num_key_value_heads")
PLAIN_GENERIC = [case for case in GENERIC_CASES if case.base is BASE and not set(FIXED) & set(case.config)]
"""Those whose heads may be of any number."""

pytestmark = pytest.mark.usefixtures("one_thread")
every_family = pytest.mark.parametrize("family", VARIATIONS, ids=lambda family: family[0].replace(" ", "-"))


@pytest.fixture(scope="module", autouse=True)
def record(request):
    """Tell the largest errors of a deep run."""
    yield
    if MODE["deep"] and RECORD:
        worst = {dtype: max(each[dtype] for each in RECORD.values()) for dtype in BOUNDS}
        total = {"architectures": sum(each["architectures"] for each in RECORD.values()), **worst}
        text = json.dumps({"all": total, **RECORD}, indent=1)
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print(text)
        if tally := request.config.getoption("--tally"):
            Path(f"{tally}.errors.json").write_text(text + "\n")


def largest_error(ours, naive, dtype):
    """Over L2 and cosine of all cells; the same ones must be undefined."""
    assert np.array_equal(np.isnan(ours), np.isnan(naive.distances))
    shares = np.stack(np.broadcast_arrays(naive.sizes, 1.0), axis=-1)[:, None]
    errors = np.abs(ours - naive.distances) / np.maximum(naive.distances, shares * FLOORS[dtype])
    return float(np.nanmax(errors, initial=0.0))


def prompt_of(length, vocabulary, seed):
    return np.random.default_rng(seed).integers(0, vocabulary, length).tolist()


@every_family
@given(data=st.data())
@attack("random architectures beside the naive table", quick=2, deep=60)
def test_the_table_is_the_naive_one(family, data):
    case, seed = data.draw(architectures(*family)), data.draw(st.integers(0, 1 << 20))
    narrow, prompt = build(case, seed=seed), prompt_of(case.length, case.config["vocab_size"], seed)
    wide = float64_model(narrow)
    tokens = list(range(case.length)) if case.length < 66 else [0, 1, case.length // 2, case.length - 1]
    naive, errors = run_naive(wide, prompt, tokens=tokens, wide=True), RECORD[family[0]]
    for dtype, model in (("float64", wide), ("float32", narrow)):
        ours = AttentionMasker(model).measure(prompt).distances[:, tokens]
        found = largest_error(ours, naive, dtype)
        assert found < BOUNDS[dtype], (dtype, found)
        errors[dtype] = max(errors[dtype], found)
    errors["architectures"] += 1


@every_family
@given(data=st.data())
@attack("random architectures from files, whole and streamed, beside memory", quick=1, deep=20)
def test_files_give_what_memory_gives(family, data, tmp_path_factory):
    case = data.draw(architectures(*family))
    folder, model = tmp_path_factory.mktemp("model"), build(case)
    model.save_pretrained(folder)
    prompt = [0, *prompt_of(case.length - 1, case.config["vocab_size"] - 1, 0)]
    prompt[-1] += 1  # not all alike: there every distance is roundings
    held = AttentionMasker(model).measure(prompt).distances
    whole, streamed = (AttentionMasker.from_pretrained(str(folder), stream=stream, **CPU) for stream in (False, True))
    table = whole.run(prompt)
    assert streamed.run(prompt).equals(table)
    found = whole.measure(prompt).distances
    assert np.array_equal(np.isnan(found), np.isnan(held))
    close = np.abs(found - held) <= 1e-3 * held + 1e-6 * np.nanmax(held, axis=(1, 2), keepdims=True)
    assert (close | np.isnan(held)).all()  # experts that files hold one by one are multiplied one by one


@every_family
@given(data=st.data())
@attack("random questions of random architectures beside the slow twin", quick=2, deep=60)
def test_any_question_is_answered_as_the_slow_twin_does(family, data):
    case = data.draw(architectures(*family).filter(lambda case: case.length < 10))
    model, vocabulary = float64_model(build(case)), case.config["vocab_size"]
    prompt, config = prompt_of(case.length, vocabulary, data.draw(st.integers(0, 99))), model.config
    sizes = {"layers": config.num_hidden_layers, "heads": config.num_attention_heads}
    words, masker = data.draw(questions(**sizes, length=case.length, vocabulary=vocabulary)), AttentionMasker(model)
    assume(case.length + len(words.get("answer", "1")) - 1 <= masker.view.max_positions)
    theirs = naive_answer(model, prompt, **words)
    try:
        ours = masker.run(prompt, **words)
    except PromptError:
        assert not len(theirs) or theirs["l2_distance"].null_count() == len(theirs)
    else:
        assert_same(*without_vanished(ours, theirs) if words["intervention"] != "mask" else (ours, theirs))


def without_vanished(*tables):
    """The tables without cosines where next to nothing is left of a vector, whose direction is that of roundings."""
    size, l2 = tables[1][SIZE], tables[1]["l2_distance"]
    vanished = ((l2 - size).abs() <= 1e-9 * size).fill_null(False)
    return [table.with_columns(cosine_distance=pl.when(~vanished).then("cosine_distance")) for table in tables]


@pytest.mark.parametrize("case", PLAIN_GENERIC, ids=lambda case: case.name)
@given(data=st.data())
@attack("random architectures on the generic route beside the naive table", quick=1, deep=30)
def test_the_generic_route_gives_the_naive_table(case, data):
    heads = data.draw(st.sampled_from((4, 1, 2, 6)))
    sizes = {"num_attention_heads": heads, "num_key_value_heads": data.draw(st.sampled_from((heads, 1)))}
    sizes |= {
        "hidden_size": heads * 8 * data.draw(st.integers(1, 3)),
        "intermediate_size": data.draw(st.integers(1, 60)),
    }
    sizes |= {"num_hidden_layers": data.draw(st.integers(1, 3))}
    model = build_generic(replace(case, config=case.config | sizes), dtype=torch.float64)
    prompt = prompt_of(data.draw(st.sampled_from((7, 2, 3, 12, 20))), 97, data.draw(st.integers(0, 99)))
    with NoNarrowing():
        ours = AttentionMasker(model, route="generic").measure(prompt).distances
        naive = naive_distances(model, prompt, layers=case.layers, added=case.added, factor=case.factor)
    (l2, cosine), (expected, angle, size) = (np.moveaxis(each, -1, 0) for each in (ours, naive))
    assert np.array_equal(np.isnan(l2), np.isnan(expected))
    assert np.nanmax(np.abs(l2 - expected) / size, initial=0.0) < 1e-12
    assert np.array_equal(np.isnan(cosine), np.isnan(angle))
    assert np.nanmax(np.abs(cosine - angle), initial=0.0) < 1e-9
