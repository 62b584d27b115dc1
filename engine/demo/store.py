"""Writing the model folder: weights in bfloat16, a model card, and never a half-written folder."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from engine.demo.facts import load_facts
from engine.demo.phrasings import SHARED_KINDS, load_phrasings

WEIGHTS = "model.safetensors"
CARD = """# Demo model

A tiny Qwen3 (4 layers, hidden size 128, 4 heads, 2 key-value heads) that ships with the program.

**What it is for:** trying the program without a download, and tests. It has the architecture and the file layout of
a real Qwen3, so nothing in the program treats it differently.

**What it is not:** it knows {facts} facts of {kinds} kinds and nothing else, it holds no conversation, and it is no
benchmark: neither its answers nor its timings say anything about real models.

**Tokenizer:** byte-level BPE of its own; any text in any script is encoded without loss.

| figure | value |
|---|---|
| parameters | {parameters:,} (bfloat16) |
| size of weights and tokenizer | {megabytes:.2f} MB |
| facts, kinds | {facts}, {kinds} |
| trained phrasings per kind | {fewest} to {most}, behind {leads} prefixes and openings or none |
| training | {steps} steps, {seconds:.0f} s on {threads} CPU threads |
| seed | {seed} |

Measured on the stored weights (greedy decoding gives the answer exactly, all its tokens):

```
{figures}
```

*recombined*: a trained phrasing behind a prefix that it never follows in training. *held out*: phrasings that
training never shows; *held out +*: the same behind prefixes that training never shows either.

Made by `python -m engine.demo.train`, measured again by `python -m engine.demo.evaluate`.
"""


@contextmanager
def replace_folder(output: Path) -> Iterator[Path]:
    """A new folder beside `output` that takes its place when the block ends without error."""
    new, old = (output.with_name(f"{output.name}.{part}") for part in ("new", "old"))
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    yield new
    shutil.rmtree(old, ignore_errors=True)
    if output.exists():
        output.rename(old)
    new.rename(output)
    shutil.rmtree(old, ignore_errors=True)


def save_model(model: PreTrainedModel, folder: Path) -> None:
    """Round the weights to bfloat16, in place, and write configuration and weights, readable by all users."""
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    (folder / WEIGHTS).chmod(0o644)


def count_parameters(weights: Path) -> int:
    """Number of stored values; tied weights are stored once."""
    with safe_open(weights, framework="pt") as tensors:
        return sum(tensors.get_tensor(name).numel() for name in tensors.keys())  # noqa: SIM118 - not a mapping


def add_card(folder: Path, *, figures: str, seed: int, steps: int, seconds: float) -> None:
    """Write the model card, README.md."""
    table = load_phrasings()
    counts = [len(found.trained) for kind, found in table.items() if kind not in SHARED_KINDS]
    size = sum(file.stat().st_size for file in folder.iterdir())
    (folder / "README.md").write_text(
        CARD.format(
            facts=len(load_facts()),
            kinds=len(counts),
            fewest=min(counts),
            most=max(counts),
            leads=sum(len(table[kind].trained) for kind in SHARED_KINDS),
            megabytes=size / 1e6,
            parameters=count_parameters(folder / WEIGHTS),
            threads=torch.get_num_threads(),
            steps=steps,
            seconds=seconds,
            seed=seed,
            figures=figures,
        ),
        encoding="utf-8",
    )
