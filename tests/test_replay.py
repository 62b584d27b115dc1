"""Replayed passes give every prompt its own table, and what cannot be replayed runs as always.

A tape stands in for the GPU: it repeats operations on fixed memory, so whatever of a prompt were baked into it, or
made only once, would show.
"""

import dataclasses

import numpy as np
import pytest
import torch
from tape import TapeRecorder
from tiny import CASES, VOCAB, build, token_ids

import engine.capture as capture
import engine.replay as replay
from engine import AttentionMasker
from engine.capture import Borrowing, CudaRecorder, NotRecordableError
from engine.decoder import Decoder
from engine.knockouts import single_tokens
from engine.passes import Pass
from engine.projection import Projection
from engine.replay import REPEATS, Replay

BY_NAME = {case.name: case for case in CASES}
META = torch.device("meta")
REPLAYED = ["qwen3", "qwen3-yarn", "qwen2-window", "llama-bias", "llama-dynamic", "llama-gelu", "mistral-long"]


def prompt(length, seed):
    return torch.randint(0, VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def taping(model, **kwargs):
    masker = AttentionMasker(model)
    masker.replay = Replay(TapeRecorder(**kwargs))
    return masker


def settle(masker, length=6, **kwargs):
    """Run as often as it takes to be recorded."""
    for seed in range(REPEATS):
        masker.measure(prompt(length, seed), **kwargs)


@pytest.mark.parametrize("name", REPLAYED)
def test_new_ids_of_a_recorded_shape_give_their_own_table(name):
    case = BY_NAME[name]
    masker, eager = taping(build(case)), AttentionMasker(build(case))
    for seed in range(6):
        ids = prompt(case.length, seed)
        np.testing.assert_array_equal(masker.measure(ids).distances, eager.measure(ids).distances)
        assert masker.replay.num_replayed == max(0, seed - 2)
    assert masker.replay.refused == {}


def test_bfloat16_weights_replay_split_products():
    case = BY_NAME["qwen3"]
    masker, eager = (taping(build(case, dtype=torch.bfloat16)) for _ in range(2))
    masker.decoder.split_products()
    eager.decoder.split_products()
    eager.replay = Replay()
    for seed in range(5):
        ids = prompt(7, seed)
        np.testing.assert_array_equal(masker.measure(ids).distances, eager.measure(ids).distances)
    assert masker.replay.num_replayed == 2


def test_every_shape_has_a_recording_of_its_own():
    masker = taping(build(BY_NAME["qwen3"]))
    plain = AttentionMasker(build(BY_NAME["qwen3"]))
    shapes = [(6, {}), (7, {}), (6, {"layers": [1]}), (6, {"layers": [0, 2]}), (6, {"tokens": [0, 3]})]
    for seed in range(REPEATS + 2):
        for length, chosen in shapes:
            ids = prompt(length, seed)
            np.testing.assert_array_equal(
                masker.measure(ids, **chosen).distances, plain.measure(ids, **chosen).distances
            )
    assert masker.replay._recorder.recorded == len(shapes)
    assert masker.replay.num_replayed == 2 * len(shapes)


def test_rotary_tables_that_leave_their_cache_stay_with_the_recording():
    masker = taping(build(BY_NAME["qwen3"]))
    settle(masker, 6)
    for length in range(7, 20):
        masker.measure(prompt(length, 0))
    plain = AttentionMasker(build(BY_NAME["qwen3"])).measure(prompt(6, 9)).distances
    np.testing.assert_array_equal(masker.measure(prompt(6, 9)).distances, plain)
    assert masker.replay.num_replayed == 1


def test_progress_and_next_tokens_go_the_eager_way():
    masker = taping(build(BY_NAME["qwen3"]))
    settle(masker)
    seen = []
    masker.measure(prompt(6, 0), watch=lambda readouts: (seen.append(r.layer) or r for r in readouts))
    assert seen == [0, 1, 2]
    assert len(masker.measure(prompt(6, 0), next_tokens=3).next_tokens) == 3
    assert masker.replay.num_replayed == 0


def test_a_query_left_blind_goes_the_eager_way():
    """Which variants are blind is copied to the device anew by each pass."""
    case = BY_NAME["mistral-window-1"]
    masker, plain = taping(build(case)), AttentionMasker(build(case))
    for seed in range(REPEATS + 1):
        ids = prompt(5, seed)
        np.testing.assert_array_equal(masker.measure(ids).distances, plain.measure(ids).distances)
    assert masker.replay.num_replayed == 0
    assert masker.replay.refused == {}


def test_the_least_recently_used_recording_goes_first(monkeypatch):
    monkeypatch.setattr(replay, "MOST_RECORDINGS", 2)
    masker = taping(build(BY_NAME["qwen3"]))
    settle(masker, 5)
    settle(masker, 6)
    masker.measure(prompt(5, 7))
    settle(masker, 7)
    assert [shape[0] for shape in masker.replay._kept] == [5, 7]
    assert masker.replay.num_replayed == 1


def test_recordings_that_outgrow_their_memory_all_go(monkeypatch):
    monkeypatch.setattr(replay, "MOST_BYTES", 2500)
    masker = taping(build(BY_NAME["qwen3"]), num_bytes=1000)
    for length in (5, 6):
        settle(masker, length)
    assert len(masker.replay._kept) == 2
    settle(masker, 7)
    assert not masker.replay._kept
    settle(masker, 7)
    masker.measure(prompt(7, 0))
    assert [shape[0] for shape in masker.replay._kept] == [7]
    assert masker.replay.num_replayed == 1


def test_a_shape_that_fills_the_memory_alone_is_not_tried_again(monkeypatch):
    monkeypatch.setattr(replay, "MOST_BYTES", 500)
    masker = taping(build(BY_NAME["qwen3"]), num_bytes=1000)
    for _ in range(3):
        settle(masker, 5)
    assert masker.replay._recorder.recorded == 1
    assert "1000 bytes" in next(iter(masker.replay.refused.values()))


def test_long_passes_are_not_recorded(monkeypatch):
    monkeypatch.setattr(replay, "MOST_ROWS", 11)
    masker = taping(build(BY_NAME["qwen3"]))
    settle(masker, 6)
    assert masker.replay._recorder.recorded == 0
    settle(masker, 5)
    assert masker.replay._recorder.recorded == 1


@pytest.mark.parametrize("error", [RuntimeError("capture failed"), torch.OutOfMemoryError("full"), KeyError("bug")])
def test_a_failed_recording_falls_back_and_is_not_tried_again(error):
    class Failing:
        tries = 0

        def record(self, run):
            self.tries += 1
            raise error

    masker, plain = AttentionMasker(build(BY_NAME["qwen3"])), AttentionMasker(build(BY_NAME["qwen3"]))
    masker.replay = Replay(failing := Failing())
    for seed in range(2 * REPEATS):
        ids = prompt(6, seed)
        np.testing.assert_array_equal(masker.measure(ids).distances, plain.measure(ids).distances)
    assert failing.tries == 1
    assert type(error).__name__ in next(iter(masker.replay.refused.values()))


def test_a_recording_with_something_of_its_prompt_in_it_is_refused(monkeypatch):
    masker = taping(build(BY_NAME["qwen3"]))
    embed, seen = Decoder.embed, {}

    def baked(self, ids):
        return seen.setdefault("rows", embed(self, ids)) if "on" in seen else embed(self, ids)

    monkeypatch.setattr(Decoder, "embed", baked)
    record = TapeRecorder.record
    monkeypatch.setattr(TapeRecorder, "record", lambda self, run: seen.update(on=True) or record(self, run))
    settle(masker)
    assert "gives other numbers" in next(iter(masker.replay.refused.values()))
    assert not masker.replay._kept


def test_an_edited_model_drops_its_recordings():
    model = build(BY_NAME["qwen3"])
    masker = taping(model)
    settle(masker)
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight.mul_(2.0)
    ids = prompt(6, 5)
    np.testing.assert_array_equal(masker.measure(ids).distances, AttentionMasker(model).measure(ids).distances)
    assert not masker.replay._kept
    settle(masker)
    np.testing.assert_array_equal(masker.measure(ids).distances, AttentionMasker(model).measure(ids).distances)
    assert masker.replay.num_replayed >= 1


def test_a_processor_records_nothing():
    masker = AttentionMasker(build(BY_NAME["qwen3"]))
    settle(masker)
    settle(masker)
    assert masker.replay.num_replayed == 0
    assert masker.replay._recorder is None


# What a pass may do while it is captured.


@pytest.mark.parametrize(
    "act",
    [
        lambda x: x.sum().item(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: bool((x > 0).any()),
        lambda x: x.masked_select(x > 0),
        lambda x: torch.tensor([1.0, 2.0]) + x[:2],
        lambda x: x.new_tensor([1.0, 2.0]),
        lambda x: x.to("meta"),
    ],
    ids=["item", "nonzero", "index", "bool", "select", "tensor", "new_tensor", "transfer"],
)
def test_what_needs_the_host_is_refused(act):
    with torch.inference_mode():
        x = torch.randn(4)
        with pytest.raises(NotRecordableError), Borrowing():
            act(x)


def test_what_is_read_is_held_and_what_is_made_is_not():
    with torch.inference_mode():
        given, out = torch.randn(4), torch.zeros(4)
        with Borrowing() as borrowed:
            made = given[1:] * 2
            out[1:] += made
            made.add_(1).sum()
    assert {t.untyped_storage().data_ptr() for t in borrowed.held.values()} == {given.data_ptr(), out.data_ptr()}


@pytest.mark.parametrize("case", [c for c in CASES if c.name != "mistral-window-1"], ids=lambda case: case.name)
def test_a_warm_pass_asks_nothing_of_the_host(case, monkeypatch):
    decoder = AttentionMasker(build(case)).decoder
    one = Pass(decoder, case.length, single_tokens(case.length, None), tuple(range(len(decoder.layers))))
    with torch.inference_mode():
        batch = one.batch(token_ids(case))
        one.numbers(batch)
        for name in ("from_numpy", "tensor", "as_tensor"):
            monkeypatch.setattr(torch, name, refuse)
        with Borrowing():
            one.numbers(batch)


def refuse(*_, **__):
    raise AssertionError("data of the host on the way")


def onto_meta(x):
    """The decoder with its tensors' shapes alone, on a device that has no data and cannot be read."""
    if isinstance(x, torch.Tensor):
        return x.to(META)
    if isinstance(x, torch.device):
        return META
    if isinstance(x, tuple):
        return tuple(map(onto_meta, x))
    if isinstance(x, Projection):
        return Projection(onto_meta(x.weights), onto_meta(x.bias))
    if dataclasses.is_dataclass(x):
        return dataclasses.replace(x, **{f.name: onto_meta(getattr(x, f.name)) for f in dataclasses.fields(x)})
    return x


@pytest.mark.parametrize("name", ["qwen3", "qwen3-long", "qwen2-window", "llama-gelu", "mistral-long"])
def test_off_the_cpu_nothing_crosses_devices(name, monkeypatch):
    """The same on the meta device: there, as on a GPU, the host's data would have to be sent over."""
    case = BY_NAME[name]
    monkeypatch.setattr("engine.split._has_kernel", lambda device: True)
    products = []
    mixed = torch.mm
    monkeypatch.setattr(torch, "mm", lambda *factors, **kwargs: products.append(kwargs) or mixed(*factors, **kwargs))
    with torch.inference_mode():
        real = AttentionMasker(build(case, dtype=torch.bfloat16)).decoder
        tables = onto_meta(real.rope(case.length))
        decoder = dataclasses.replace(onto_meta(real), rope=lambda _: tables)
        decoder.split_products()
        one = Pass(decoder, case.length, single_tokens(case.length, None), tuple(range(len(decoder.layers))))
        batch = one.batch(token_ids(case))
        one.numbers(batch)
        with Borrowing() as borrowed:
            numbers = one.numbers(batch)
    heads = decoder.heads.num_heads
    assert numbers.shape == (len(decoder.layers) * (case.length * (2 + heads) * 2 + 1),)
    assert {tensor.device for tensor in borrowed.held.values()} == {META}
    assert len(products) >= 2 * 7 * len(decoder.layers)
    assert all(kwargs == {"out_dtype": torch.float32} for kwargs in products)


# The recorder of a GPU, with every call to torch.cuda written down.


class Cuda:
    """Stands in for ``torch.cuda``; ``fails`` makes the end of a capture raise."""

    def __init__(self):
        self.calls, self.streams, self.fails, self.reserved = [], ["caller"], False, 0

    def __getattr__(self, name):
        return lambda *args, **kwargs: self.calls.append(name)

    def Stream(self, device):  # noqa: N802
        return Stream("side", self)

    def current_stream(self, device=None):
        return Stream(self.streams[-1], self)

    def device(self, device):
        return Inside(self, None)

    def stream(self, stream):
        return Inside(self, stream.name)

    def memory_reserved(self, device):
        self.reserved += 50
        return self.reserved

    def graph_pool_handle(self):
        self.calls.append("pool")
        return object()

    def graph(self, graph, *, pool, stream, capture_error_mode):
        self.calls.append("capture")
        return Inside(self, stream.name, leaves=not self.fails)

    class CUDAGraph:
        def replay(self):
            pass


class Stream:
    def __init__(self, name, cuda):
        self.name, self.cuda = name, cuda

    def wait_stream(self, other):
        self.cuda.calls.append(f"{self.name} waits for {other.name}")


class Inside:
    def __init__(self, cuda, name, *, leaves=True):
        self.cuda, self.name, self.leaves = cuda, name, leaves

    def __enter__(self):
        self.before = list(self.cuda.streams)
        self.cuda.streams += [self.name] if self.name else []

    def __exit__(self, *_):
        if not self.leaves:
            raise RuntimeError("capture failed")
        self.cuda.streams = self.before


@pytest.fixture
def cuda(monkeypatch):
    monkeypatch.setattr(capture.torch, "cuda", fake := Cuda())
    return fake


def test_a_capture_is_warmed_up_on_its_own_stream(cuda):
    recorder, x = CudaRecorder(torch.device("cuda")), torch.ones(3)
    with torch.inference_mode():
        first = recorder.record(lambda: cuda.calls.append(f"run on {cuda.streams[-1]}") or x * 2)
    runs = ["run on side"] * 3
    assert cuda.calls == [
        *("side waits for caller", *runs, "caller waits for side", "pool"),
        *("synchronize", "empty_cache", "capture", "run on side"),
    ]
    assert cuda.streams == ["caller"]
    assert first.num_bytes == 50
    assert torch.equal(first(), torch.full((3,), 2.0))


def test_the_pool_is_shared_while_a_graph_lives(cuda):
    recorder, x = CudaRecorder(torch.device("cuda")), torch.ones(3)
    first = recorder.record(lambda: x * 2)
    second = recorder.record(lambda: x * 3)
    assert cuda.calls.count("pool") == 1
    del first, second
    recorder.record(lambda: x * 4)
    assert cuda.calls.count("pool") == 2


def test_a_failed_capture_returns_to_the_callers_stream(cuda):
    recorder, x = CudaRecorder(torch.device("cuda")), torch.ones(3)
    cuda.fails = True
    with pytest.raises(RuntimeError, match="capture failed"):
        recorder.record(lambda: x * 2)
    assert cuda.streams == ["caller"]
    cuda.fails = False
    recorder.record(lambda: x * 2)
    assert cuda.calls.count("pool") == 2


def test_what_cannot_be_captured_never_starts_a_capture(cuda):
    recorder, x = CudaRecorder(torch.device("cuda")), torch.ones(3)
    with torch.inference_mode(), pytest.raises(NotRecordableError):
        recorder.record(lambda: x * x.sum().item())
    assert "capture" not in cuda.calls
    assert cuda.streams == ["caller"]
