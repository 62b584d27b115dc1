"""Checkpoints of stated shapes with random weights, written tensor by tensor: a large one takes no memory to make."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from string import ascii_lowercase
from typing import BinaryIO

import torch
from tokenizers import Tokenizer, pre_tokenizers
from transformers import Qwen3Config

from benchmarks.workloads import DTYPES, Shape

SHARD_BYTES = 4 << 30
CHUNK_CELLS = 1 << 24
NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float64: "F64"}
SETTINGS = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
LONGEST_WORD = 7


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A tensor that will be written: uniform numbers up to ``limit``, or around 1 for a norm."""

    name: str
    shape: tuple[int, ...]

    @property
    def num_cells(self) -> int:
        return math.prod(self.shape)

    def chunks(self, dtype: torch.dtype, random: torch.Generator) -> Iterator[torch.Tensor]:
        """Its numbers, which keep the size of the rows that are multiplied with them."""
        spread = 3**0.5 if "embed" in self.name else (3 / self.shape[-1]) ** 0.5
        low, high = (0.8, 1.2) if len(self.shape) == 1 else (-spread, spread)
        for start in range(0, self.num_cells, CHUNK_CELLS):
            count = min(CHUNK_CELLS, self.num_cells - start)
            yield torch.empty(count, dtype=torch.bfloat16).uniform_(low, high, generator=random).to(dtype)


def write_checkpoint(
    folder: Path, shape: Shape, *, dtype: str, tied: bool = True, shard_bytes: int = SHARD_BYTES, seed: int = 0
) -> str:
    """Write a Qwen3 with a tokenizer of its vocabulary's size; a text of words that are a token each."""
    folder.mkdir(parents=True)
    kind, random = DTYPES[dtype], torch.Generator().manual_seed(seed)
    config = Qwen3Config(
        **vars(shape),
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        max_position_embeddings=40960,
        tie_word_embeddings=tied,
        dtype=kind,
        architectures=["Qwen3ForCausalLM"],
    )
    config.save_pretrained(folder)
    shards = list(_shards(list(_planned(shape, tied=tied)), shard_bytes // kind.itemsize))
    places: dict[str, str] = {}
    for number, tensors in enumerate(shards, 1):
        file = folder / f"model-{number:05}-of-{len(shards):05}.safetensors"
        places |= {tensor.name: file.name for tensor in tensors}
        with file.open("wb") as stream:
            _write(stream, tensors, kind, random)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return _write_tokenizer(folder, shape.vocab_size)


def _planned(shape: Shape, *, tied: bool) -> Iterator[Planned]:
    """Every weight by its name in transformers, in the order of a pass."""
    e, f, d = shape.hidden_size, shape.intermediate_size, shape.head_dim
    q, kv = shape.num_attention_heads * d, shape.num_key_value_heads * d
    attention = {"q_proj": (q, e), "k_proj": (kv, e), "v_proj": (kv, e), "o_proj": (e, q), "q_norm": (d,)}
    layer: dict[str, tuple[int, ...]] = {"input_layernorm": (e,)}
    layer |= {f"self_attn.{name}": size for name, size in (attention | {"k_norm": (d,)}).items()}
    layer |= {"post_attention_layernorm": (e,), "mlp.gate_proj": (f, e), "mlp.up_proj": (f, e), "mlp.down_proj": (e, f)}
    yield Planned(name="model.embed_tokens.weight", shape=(shape.vocab_size, e))
    for index in range(shape.num_hidden_layers):
        for name, size in layer.items():
            yield Planned(name=f"model.layers.{index}.{name}.weight", shape=size)
    yield Planned(name="model.norm.weight", shape=(e,))
    if not tied:
        yield Planned(name="lm_head.weight", shape=(shape.vocab_size, e))


def _shards(tensors: list[Planned], most_cells: int) -> Iterator[list[Planned]]:
    shard: list[Planned] = []
    for tensor in tensors:
        if shard and sum(each.num_cells for each in (*shard, tensor)) > most_cells:
            yield shard
            shard = []
        shard.append(tensor)
    yield shard


def _write(stream: BinaryIO, tensors: list[Planned], dtype: torch.dtype, random: torch.Generator) -> None:
    """One safetensors file: the size of its header, the header, the tensors."""
    header, end = {}, 0
    for tensor in tensors:
        start, end = end, end + tensor.num_cells * dtype.itemsize
        header[tensor.name] = {"dtype": NAMES[dtype], "shape": tensor.shape, "data_offsets": (start, end)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors:
        for chunk in tensor.chunks(dtype, random):
            stream.write(memoryview(chunk.view(torch.uint8).numpy().data))


def _write_tokenizer(folder: Path, size: int) -> str:
    """A byte-level BPE of about ``size`` tokens, random words; a text of seven of them (letters, if there are none)."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words, merges, random = ["Ġ"], [], Random(0)
    known = set(alphabet)
    while len(known) < size:
        stem, letter = random.choice(words), random.choice(ascii_lowercase)
        if stem + letter not in known:
            known.add(stem + letter)
            merges.append([stem, letter])
            if len(stem) < LONGEST_WORD:
                words.append(stem + letter)
    vocabulary = [*alphabet, *("".join(pair) for pair in merges)]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {"type": "BPE", "vocab": {word: i for i, word in enumerate(vocabulary)}, "merges": merges}
    whole = {"version": "1.0", "added_tokens": [], "pre_tokenizer": level, "decoder": level, "model": model}
    (folder / "tokenizer.json").write_text(json.dumps(whole), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(SETTINGS), encoding="utf-8")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    singles = (word.replace("Ġ", " ") for word in vocabulary[-1:256:-1])
    found = [word for word in singles if len(tokenizer.encode(word).ids) == 1][:7]
    return "".join(found) or ascii_lowercase[:7]
