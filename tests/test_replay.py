"""Replayed passes give every prompt its own table, and what cannot be replayed runs as always.

A tape stands in for the GPU: it repeats operations on fixed memory, so whatever of a prompt were baked into it, or
made only once, would show.
"""

import dataclasses

import numpy as np
import pytest
import torch
from tape import TapeRecorder
from tiny import CASES, VOCAB, build

import engine.sweeps.replay as replay
from engine import AttentionMasker
from engine.model.decoder import Decoder
from engine.sweeps.replay import REPEATS, Replay

BY_NAME = {case.name: case for case in CASES}
REPLAYED = ["qwen3", "qwen3-yarn", "qwen2-window", "llama-bias", "llama-dynamic", "llama-gelu", "mistral-long"]


def prompt(length, seed):
    return torch.randint(0, VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def taping(model, **kwargs):
    masker = AttentionMasker(model)
    masker._measuring.replay = Replay(TapeRecorder(**kwargs))
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
    eager._measuring.replay = Replay()
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
    assert [shape[0][0] for shape in masker.replay._kept] == [5, 7]
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
    assert [shape[0][0] for shape in masker.replay._kept] == [7]
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


@pytest.mark.parametrize("error", [RuntimeError("capture failed"), torch.OutOfMemoryError("full")])
def test_a_failed_recording_falls_back_and_is_not_tried_again(error):
    class Failing:
        tries = 0

        def record(self, run):
            self.tries += 1
            raise error

    masker, plain = AttentionMasker(build(BY_NAME["qwen3"])), AttentionMasker(build(BY_NAME["qwen3"]))
    masker._measuring.replay = Replay(failing := Failing())
    for seed in range(2 * REPEATS):
        ids = prompt(6, seed)
        np.testing.assert_array_equal(masker.measure(ids).distances, plain.measure(ids).distances)
    assert failing.tries == 1
    assert type(error).__name__ in next(iter(masker.replay.refused.values()))


def test_a_recording_with_something_of_its_prompt_in_it_is_refused(monkeypatch):
    masker = taping(build(BY_NAME["qwen3"]))
    embed, seen = Decoder.embed, {}

    def baked(self, ids, positions):
        return seen.setdefault("rows", embed(self, ids, positions)) if "on" in seen else embed(self, ids, positions)

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


def test_a_gpu_gets_its_recorder_and_another_decoder_another(monkeypatch):
    monkeypatch.setattr(replay, "CudaRecorder", lambda device: ("recorder of", device))
    own = Replay()
    for index in (0, 1):
        device = torch.device("cuda", index)
        own._turn_to(dataclasses.replace(AttentionMasker(build(BY_NAME["qwen3"])).decoder, device=device))
        assert own._recorder == ("recorder of", device)
