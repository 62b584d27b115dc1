"""Weights that a pass reads from their files: the same digits as weights in memory, in bounded memory, and no surprises
when a file goes while it is read.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from benchmarks.checkpoints import write_checkpoint
from benchmarks.workloads import Shape
from benchmarks.zoo import CASES, build, token_ids
from engine import AttentionMasker, run_masking_experiment
from engine.commands import main
from engine.errors import DeviceError, ModelError
from engine.model.blocks import HostBlocks, Request, Shelf
from engine.model.fingerprint import fingerprint
from engine.model.stored import BLOCK_CELLS, in_blocks
from engine.model.streaming import Streamed
from engine.model.tensors import StoredTensor, Unwanted, read_header
from engine.runs.schedule import STREAMED_ROWS, Schedule
from engine.sweeps.replay import Replay

ROOT = Path(__file__).parent.parent
BY_NAME = {case.name: case for case in CASES}
FIRST = [case.name for case in CASES if not case.variation]
QUESTIONS = (
    {"read": "output", "cut": "window:2", "hidden_from": "query"},
    {"cut": "all"},
    {"query": "all", "sites": ["MLP", "Resid", "Result_h"]},
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def narrow_blocks(monkeypatch):
    """Several blocks even of a tiny vocabulary."""
    monkeypatch.setattr("engine.model.stored.BLOCK_CELLS", 20 * 48)


@pytest.fixture
def folder(tmp_path):
    """A tiny model in shards, one layer or so in each."""
    build(BY_NAME["qwen3"]).save_pretrained(tmp_path / "model", max_shard_size="60KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 3
    return tmp_path / "model"


def both(folder, **options):
    return (AttentionMasker.from_pretrained(str(folder), device="cpu", stream=s, **options) for s in (False, True))


def readers():
    return [thread for thread in threading.enumerate() if thread.name == "weights"]


# The same digits


@pytest.mark.usefixtures("narrow_blocks")
@pytest.mark.parametrize("name", FIRST)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_family_gives_the_same_digits(name, dtype, tmp_path):
    build(BY_NAME[name]).save_pretrained(tmp_path, max_shard_size="60KB")
    resident, streamed = both(tmp_path, dtype=dtype)
    prompt = token_ids(BY_NAME[name])
    expected = resident.measure(prompt, next_tokens=3)
    for _ in range(2):  # the second pass finds its first layer read
        found = streamed.measure(prompt, next_tokens=3)
        assert found.table().equals(expected.table())
        assert found.next_tokens == expected.next_tokens


@pytest.mark.usefixtures("narrow_blocks")
@pytest.mark.parametrize("choices", QUESTIONS, ids=lambda choices: " ".join(map(str, choices.values())))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_question_gives_the_same_digits(choices, dtype, folder):
    prompt = token_ids(BY_NAME["qwen3"])
    resident, streamed = both(folder, dtype=dtype)
    assert streamed.run(prompt, **choices).equals(resident.run(prompt, **choices))


def test_many_prompts_and_a_dataset(folder, tmp_path):
    resident, streamed = both(folder)
    resident._settled = True  # packed weights round the product of a single row otherwise
    prompts = [token_ids(BY_NAME["qwen3"])[:length] for length in (3, 9, 5, 9)]
    for (_, one), (_, other) in zip(resident.run_many(prompts), streamed.run_many(prompts), strict=True):
        np.testing.assert_allclose(one["l2_distance"].to_numpy(), other["l2_distance"].to_numpy(), rtol=1e-5)
    manifest = streamed.run_dataset(prompts, tmp_path / "set")
    assert manifest["kernel"]["packed"] is False
    assert manifest["kernel"]["rows_per_pass"] <= STREAMED_ROWS
    assert resident.run_dataset(prompts, tmp_path / "set")["status"] == "complete"  # the same model, the same settings


def test_the_fingerprint_is_the_same(folder):
    resident, streamed = both(folder)
    assert fingerprint(resident.decoder) == fingerprint(streamed.decoder)


def test_a_tall_unembedding_is_multiplied_in_the_same_blocks(tmp_path):
    """How a library adds up may depend on the height of a matrix."""
    from engine.kernels.projection import Projection
    from engine.model.stored import StoredProjection, StoredTable

    weight = torch.randn(2 * BLOCK_CELLS // 768 + 77, 768)
    save_file({"head": weight}, tmp_path / "head.safetensors")
    stored = read_header(tmp_path / "head.safetensors")["head"]
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        resident = in_blocks(Projection((weight.to(dtype),)))
        assert len(resident.weights) == 3
        streamed = StoredProjection(StoredTable(stored, dtype, torch.device("cpu")))
        for rows in (torch.randn(1, 768), torch.randn(7, 768)):
            rows = rows.to(torch.promote_types(dtype, torch.float32))
            assert torch.equal(resident(rows), streamed(rows))
            assert torch.equal(resident.wide_product(rows), streamed.wide_product(rows))


def test_it_is_asked_for_in_python_and_in_words(folder, tmp_path, capsys):
    prompt = token_ids(BY_NAME["qwen3"])
    table = run_masking_experiment(prompt, model=str(folder), device="cpu", stream=True)
    assert table.equals(run_masking_experiment(prompt, model=str(folder), device="cpu"))
    words = ["--prompt", "The Eiffel Tower is in", "--device", "cpu", "--output"]
    outputs = [tmp_path / "resident.csv", tmp_path / "streamed.csv"]
    assert main([*words, str(outputs[0])]) == 0
    assert main([*words, str(outputs[1]), "--stream"]) == 0
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    assert "' Paris' 0.989" in capsys.readouterr().out


# What is read, and when


def test_only_the_prompts_rows_of_the_embedding_are_read(folder, monkeypatch):
    (_, masker), asked, read = both(folder), [], StoredTensor.rows
    monkeypatch.setattr(StoredTensor, "rows", lambda self, ids: asked.append(list(ids)) or read(self, ids))
    monkeypatch.setattr(StoredTensor, "read", lambda self: pytest.fail("a whole tensor was read"))
    masker.run([5, 9, 5, 7])
    assert asked == [[5, 7, 9]]


def shelves_of(folder, count=6):
    """Shelves of one tensor each, whose cells are the shelf's number."""
    save_file({str(i): torch.full((64, 16), float(i)) for i in range(count)}, folder / "numbers.safetensors")
    stored = read_header(folder / "numbers.safetensors")
    return [Shelf({"x": stored[str(i)]}, {"x": torch.float32}) for i in range(count)]


class Counting(HostBlocks):
    """Blocks that note what is read to them; ``ahead`` as if files lay on a slow disk."""

    def __init__(self, *, ahead):
        super().__init__(64 * 16 * 4)
        self.read, self._ahead = [], ahead

    def filled(self, shelf, request):
        found = super().filled(shelf, request)
        self.reads_ahead = self._ahead
        self.read.append(int(found["x"][0, 0]))
        return found


def streamed(folder, *, ahead=True):
    blocks = Counting(ahead=ahead)
    return Streamed(shelves_of(folder), lambda _, found: found["x"], blocks), blocks


def settled(check):
    """Whether a condition holds soon."""
    return any(check() or time.sleep(0.01) for _ in range(300))


@pytest.mark.parametrize("ahead", [False, True])
def test_the_next_part_is_read_ahead_and_nothing_beyond_the_end(tmp_path, ahead):
    parts, blocks = streamed(tmp_path, ahead=ahead)
    passing = parts[:3]
    assert [int(passing[i][0, 0]) for i in range(3)] == [0, 1, 2]
    assert blocks.read == [0, 1, 2]
    for i in range(3):
        assert int(passing[i][0, 0]) == i
    expected = [0, 1, 2, 0] if ahead else [0, 1, 2]  # after a second pass a third is likely
    assert settled(lambda: blocks.read[3:] == expected)
    assert int(parts[5][0, 0]) == 5
    assert settled(lambda: not readers())


def test_two_blocks_do_and_whoever_holds_on_keeps_what_he_has(tmp_path):
    parts, blocks = streamed(tmp_path)
    for _ in range(3):
        for part in parts:
            assert len(part.unique()) == 1
    del part
    assert blocks._made == 2
    every = list(parts)
    assert [int(part.unique()) for part in every] == list(range(6))
    assert all(part.data_ptr() % 64 == 0 for part in every)
    del every
    assert settled(lambda: blocks._made == 2)
    assert [int(part.unique()) for part in parts] == list(range(6))


def test_a_part_that_nobody_wants_any_more_is_dropped(tmp_path):
    blocks, request = Counting(ahead=True), Request()
    shelf = shelves_of(tmp_path)[0]
    held = [blocks.filled(shelf, Request()) for _ in range(2)]
    threading.Timer(0.1, request.drop).start()
    with pytest.raises(Unwanted):
        blocks.filled(shelf, request)
    assert len(held) == 2


def test_passes_take_many_rows_and_are_never_recorded(folder):
    (resident, masker), replay = both(folder), Replay()
    assert Schedule(masker.decoder).rows > Schedule(resident.decoder).rows
    masker.run([5, 9, 5, 7])
    replay._turn_to(masker.decoder)
    assert replay._recorder is None
    assert not masker.decoder.is_packed


# Files that go


def cut(file):
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size - 8)


def edit(file):
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(1, 1))


@pytest.mark.parametrize(
    ("change", "reason"), [(Path.unlink, "is missing"), (cut, "has changed"), (edit, "has changed")]
)
@pytest.mark.parametrize("layer", [0, 2])
def test_a_file_that_goes_while_it_is_needed(folder, change, reason, layer):
    _, masker = both(folder)
    masker.run([5, 9, 5, 7])
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    file = folder / index[f"model.layers.{layer}.mlp.down_proj.weight"]
    shutil.copy(file, file.with_suffix(".kept"))
    change(file)
    with pytest.raises(ModelError, match=f"{file.name}.*{reason}"):
        masker.run([5, 9, 5, 7])
    with pytest.raises(ModelError, match=file.name):
        masker.run([5, 9, 5, 7])
    assert settled(lambda: not readers())


def test_what_cannot_be_streamed_says_so(tmp_path, capsys):
    with pytest.raises(DeviceError, match="exclude each other"):
        AttentionMasker.from_pretrained(stream=True, device_map="auto")
    with pytest.raises(ModelError, match="generic route"):
        AttentionMasker.from_pretrained(stream=True, route="generic")
    with pytest.raises(SystemExit):
        main(["--prompt", "a b", "--stream", "--device-map", "auto"])
    assert "not allowed with" in capsys.readouterr().err


# Whole processes

MEDIUM = Shape(
    num_hidden_layers=8,
    hidden_size=768,
    num_attention_heads=12,
    num_key_value_heads=6,
    head_dim=64,
    intermediate_size=2048,
    vocab_size=8192,
)
PEAK = """
import re, sys
from engine import AttentionMasker
masker = AttentionMasker.from_pretrained(sys.argv[1], device="cpu", stream=sys.argv[2] == "True")
masker.measure([5, 9, 5, 7], next_tokens=5)
print(int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) // 1024)
"""


def peak_mib(folder, *, stream):
    words = [sys.executable, "-c", PEAK, str(folder), str(stream)]
    return int(subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_holds_a_layer_or_two_not_the_model(tmp_path):
    write_checkpoint(tmp_path / "model", MEDIUM, dtype="float32", shard_bytes=1 << 27)
    resident, streamed = (peak_mib(tmp_path / "model", stream=stream) for stream in (False, True))
    held = 8 * 25  # MiB of layers; and 24 of the vocabulary
    assert streamed < resident - 0.7 * held


@pytest.mark.skipif(sys.platform == "win32", reason="signals are others there")
def test_ctrl_c_ends_a_run_that_waits_for_a_disk(folder, tmp_path):
    """A reader that hangs holds up nobody; and nothing is left behind."""
    hang = (
        "import sys, time; import engine.model.tensors as tensors; from engine.commands import program; "
        "tensors.StoredTensor.fill = lambda *_, **__: (print('reading', flush=True), time.sleep(60)); program()"
    )
    words = [
        "--model",
        str(folder),
        "--prompt",
        "a",
        "--stream",
        "--device",
        "cpu",
        "--output",
        str(tmp_path / "t.csv"),
    ]
    shutil.copy(ROOT / "engine" / "demo" / "model" / "tokenizer.json", folder)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    process = subprocess.Popen([sys.executable, "-c", hang, *words], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() == "reading"
    time.sleep(0.5)  # a signal between two steps of a line that is being printed is lost to Python itself
    try:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
