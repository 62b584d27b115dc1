"""Layers on several devices: no operation mixes two of them, and rows come back to where they began.

There is one device here. The second is made up: under fake tensors, which compute no numbers but know where they are,
layers lie on ``meta``, and torch refuses every operation on tensors of two devices.
"""

from dataclasses import fields, is_dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.zoo import CASES, build, token_ids
from engine import AttentionMasker
from engine.errors import DeviceError, ModelError
from engine.kernels.batches import Batch
from engine.model.adoption import adopt
from engine.questions.question import ask
from engine.runs.jobs import Task
from engine.runs.measuring import Measuring
from engine.runs.trips import Trip
from engine.sweeps.replay import Replay

BY_NAME = {case.name: case for case in CASES}
FIRST = [case.name for case in CASES if not case.variation]
SPARSE = ("qwen3-moe", "mixtral", "gpt-oss")
"""Their routers ask the device which experts were chosen, which a fake one cannot say."""
HOME, AWAY = torch.device("cpu"), torch.device("meta")
LOCAL = (
    {},
    {"query": "all", "sites": ["MLP", "Resid", "Result_h"], "columns": ["attention_mass", "relative_l2"]},
    {"heads": [(0, 1)]},
    {"intervention": "value-mean"},
)
TRAVELLING = (
    {"cut": "all"},
    {"read": "output", "cut": "window:2", "hidden_from": "query"},
    {"read": "output", "cut": "layer", "columns": ["relative_l2"]},
)

pytestmark = pytest.mark.usefixtures("one_thread")


def faked(x, device, mode):
    """The same dataclasses, with fake tensors on a device."""
    if isinstance(x, torch.Tensor):
        return mode.from_tensor(x.detach()).to(device)
    if is_dataclass(x):
        copy = object.__new__(type(x))
        for each in fields(x):
            object.__setattr__(copy, each.name, faked(getattr(x, each.name), device, mode))
        return copy
    return tuple(faked(each, device, mode) for each in x) if type(x) is tuple else x


def tabled(name):
    """A decoder whose rotary tables are made already: fake tensors cannot be copied as a module copies its own."""
    decoder = adopt(build(BY_NAME[name]))
    tables = {rope: made(64) for rope, made in decoder.ropes.items()}
    return replace(decoder, ropes={rope: lambda _, pair=pair: pair for rope, pair in tables.items()})


def shortened(pair, count, mode):
    return tuple(faked(table[:count], HOME, mode) for table in pair)


def spread(decoder, mode, ends=(HOME, HOME)):
    """The decoder with its first layer at home and the others away."""
    ropes = {name: lambda count, made=made: shortened(made(count), count, mode) for name, made in decoder.ropes.items()}
    layers = tuple(faked(layer, AWAY if index else HOME, mode) for index, layer in enumerate(decoder.layers))
    parts = {"embedding": ends[0], "unembedding": ends[1], "final_norm": ends[1]}
    moved = {name: faked(getattr(decoder, name), device, mode) for name, device in parts.items()}
    return replace(decoder, layers=layers, ropes=ropes, **moved)


def prepared(decoder, name, choices):
    """A decoder's work, a job and a task."""
    measuring, layers = Measuring(decoder, None), tuple(range(len(decoder.layers)))
    task = Task(layers, None, ask(choices))
    (job,) = measuring.preparing(task).jobs([token_ids(BY_NAME[name])])
    return measuring, job, task


@pytest.mark.parametrize("choices", LOCAL, ids=str)
@pytest.mark.parametrize("name", [name for name in FIRST if name not in SPARSE])
def test_a_sweep_moves_rows_from_device_to_device(name, choices):
    decoder = tabled(name)
    _, job, task = prepared(decoder, name, choices)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        decoder = spread(decoder, mode)
        assert decoder.places == (HOME, *[AWAY] * (len(decoder.layers) - 1))
        one = Measuring(decoder, None)._pass([job], task)
        cells, residual = one.measured(one.batch([job.prompt.token_ids]), to_end=True)
        assert (cells.device, residual.device) == (HOME, AWAY)
        assert decoder.logits(residual).device == HOME


@pytest.mark.parametrize("choices", TRAVELLING, ids=str)
@pytest.mark.parametrize("ends", [(HOME, HOME), (HOME, AWAY)], ids=["tied", "untied"])
def test_a_journey_does_as_well(choices, ends, monkeypatch):
    decoder = tabled("qwen3")
    _, job, task = prepared(decoder, "qwen3", choices)
    found = []
    monkeypatch.setattr("engine.sweeps.answers._are_far", lambda shifts: True)  # fake tensors have no numbers
    monkeypatch.setattr(Trip, "_effects", lambda self, answers, *_: found.append(answers.kl) or [])
    monkeypatch.setattr("engine.runs.trips.measure_readouts", lambda *a, **k: found.append(MEASURE(*a, **k)[0]) or STOP)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        trip = Trip(spread(decoder, mode, ends), None, [job], task, iter)
        if task.question.read == "output":
            trip.effects(lambda rows: [()] * len(rows))
        else:
            with pytest.raises(TypeError, match="stop here"):
                trip.impacts()
    assert [cells.device for cells in found] == [HOME]


class _Stop:
    def __iter__(self):
        raise TypeError("stop here: fake numbers become no table")


STOP = _Stop()
MEASURE = __import__("engine.runs.trips", fromlist=["measure_readouts"]).measure_readouts


def test_a_batch_that_stays_behind_is_noticed(monkeypatch):
    """The tests above can fail."""
    decoder = tabled("qwen3")
    _, job, task = prepared(decoder, "qwen3", {})
    monkeypatch.setattr(Batch, "to", lambda self, device: self)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        one = Measuring(spread(decoder, mode), None)._pass([job], task)
        with pytest.raises(RuntimeError, match="device"):
            one.measured(one.batch([job.prompt.token_ids]))


def test_a_spread_decoder_is_not_recorded():
    decoder = tabled("qwen3")
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        moved = replace(spread(decoder, mode), device=torch.device("cuda", 0))
        assert len(moved.devices) == 2
        replay = Replay()
        replay._turn_to(moved)
    assert replay._recorder is None


def test_auto_gives_the_same_table(tmp_path):
    pytest.importorskip("accelerate")
    build(BY_NAME["qwen3"]).save_pretrained(tmp_path)
    mapped = AttentionMasker.from_pretrained(str(tmp_path), device_map="auto")
    plain = AttentionMasker.from_pretrained(str(tmp_path))
    prompt = token_ids(BY_NAME["qwen3"])
    assert mapped.run(prompt).equals(plain.run(prompt))
    assert mapped.decoder.name == plain.decoder.name


def test_weights_that_are_offloaded_are_refused_with_a_way_out():
    model = build(BY_NAME["qwen3"])
    model.model.layers[1].to("meta")
    with pytest.raises(ModelError, match="--stream"):
        AttentionMasker(model)


def test_a_layer_on_two_devices_is_refused(monkeypatch):
    model = build(BY_NAME["qwen3"])
    parameters = [SimpleNamespace(device=torch.device("cuda", index)) for index in range(2)]
    monkeypatch.setattr(type(model.model.layers[1]), "parameters", lambda self: iter(parameters))
    with pytest.raises(ModelError, match="layer 0 is spread over cuda:0, cuda:1"):
        AttentionMasker(model)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"device_map": "balanced"}, "unknown device map 'balanced'"),
        ({"device_map": "auto", "device": "cpu"}, "exclude each other"),
        ({"device_map": "auto", "stream": True}, "exclude each other"),
    ],
)
def test_maps_that_cannot_be_made(given, reason):
    with pytest.raises(DeviceError, match=reason):
        AttentionMasker.from_pretrained(**given)


def test_without_accelerate_one_line_says_so(monkeypatch):
    monkeypatch.setattr("engine.model.devices.find_spec", lambda name: None)
    with pytest.raises(DeviceError, match="needs accelerate; pip install"):
        AttentionMasker.from_pretrained(device_map="auto")
