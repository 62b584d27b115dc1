"""What may be captured, what a recording holds on to, and in which order the GPU's recorder asks for it."""

import dataclasses

import pytest
import torch
from tiny import CASES, build, token_ids

import engine.sweeps.capture as capture
from engine import AttentionMasker
from engine.kernels.projection import Projection
from engine.sweeps.capture import Borrowing, CudaRecorder, NotRecordableError
from engine.sweeps.passes import Pass
from engine.text.knockouts import single_tokens

BY_NAME = {case.name: case for case in CASES}
META = torch.device("meta")


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
    one = Pass(decoder, (case.length,), (single_tokens(case.length, None),), tuple(range(len(decoder.layers))))
    with torch.inference_mode():
        batch = one.batch([token_ids(case)])
        expected = one.distances(batch)
        for name in ("from_numpy", "tensor", "as_tensor"):
            monkeypatch.setattr(torch, name, refuse)
        with Borrowing() as borrowed:
            again = one.distances(batch)
    assert torch.equal(again, expected)
    held = {tensor.untyped_storage().data_ptr() for tensor in borrowed.held.values()}
    assert {batch.token_ids.data_ptr(), decoder.embedding.table.data_ptr()} <= held, (
        "what a recording reads stays alive"
    )


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
    monkeypatch.setattr("engine.kernels.split._has_kernel", lambda device: True)
    products = []
    mixed = torch.mm
    monkeypatch.setattr(torch, "mm", lambda *factors, **kwargs: products.append(kwargs) or mixed(*factors, **kwargs))
    with torch.inference_mode():
        real = AttentionMasker(build(case, dtype=torch.bfloat16)).decoder
        tables = onto_meta(real.ropes["default"](case.length))
        decoder = dataclasses.replace(onto_meta(real), ropes={"default": lambda _: tables})
        decoder.split_products()
        one = Pass(decoder, (case.length,), (single_tokens(case.length, None),), tuple(range(len(decoder.layers))))
        batch = one.batch([token_ids(case)])
        one.distances(batch)
        with Borrowing() as borrowed:
            numbers = one.distances(batch)
    heads = decoder.heads.num_heads
    assert numbers.shape == (len(decoder.layers), case.length, 2 + heads, 2)
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
