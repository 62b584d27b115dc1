"""A dataset folder of random numbers in the program's own form: as many rows as one likes, without a model."""

from pathlib import Path

import numpy as np
import polars as pl

from engine.datasets.folder import Folder
from engine.datasets.manifest import COMPLETE, new_manifest, write_manifest
from engine.datasets.merging import merge
from engine.datasets.orders import Receipt
from engine.tables.table import build_tables, variant_names

LAYERS, HEADS = 28, 16
SHORTEST, LONGEST = 10, 30
PROMPTS_PER_PART = 200
VOCABULARY = 5_000
RUN = "made"


def make_dataset(path: Path, *, prompts: int, seed: int = 0, layers: int = LAYERS, heads: int = HEADS) -> int:
    """Write a complete dataset of ``prompts`` prompts of 10 to 30 tokens into ``path``; returns its rows.

    Distances are log-normal, tokens follow Zipf's law over 5,000 texts, the first token weighs ten times as much as
    others; every head has a strength of its own, which prompts share. The parts are compressed as a worker does it.
    """
    path.mkdir(parents=True)
    folder, random = Folder(path), np.random.default_rng(seed)
    strengths = random.normal(-3, 1.5, (layers, 1, 2 + heads, 1)).astype(np.float32)
    settings = {"format": "parquet", "ids": "row numbers", "dtype": "float32", "device": "cpu", "question": {}}
    manifest = new_manifest(
        model={"name": "random numbers", "layers": layers, "heads": heads},
        settings=settings,
        kernel={},
        source="none",
        checked=False,
    )
    folder.prepare(RUN)
    starts = range(0, prompts, PROMPTS_PER_PART)
    ids = [range(start, min(start + PROMPTS_PER_PART, prompts)) for start in starts]
    receipts = {shard: _write(folder, shard, part, strengths, random) for shard, part in enumerate(ids)}
    files = merge(folder, RUN, receipts)
    write_manifest(folder.manifest, manifest | {"status": COMPLETE, "files": files})
    return sum(receipt.counts["rows"] for receipt in receipts.values())


def _write(folder: Folder, shard: int, ids: range, strengths: np.ndarray, random: np.random.Generator) -> Receipt:
    """One part, with its receipt."""
    counts = random.integers(SHORTEST, LONGEST + 1, len(ids))
    pieces = [_pieces(count, random) for count in counts]
    frame = build_tables(
        [_distances(count, strengths, random) for count in counts],
        prompt_ids=list(ids),
        layers=range(len(strengths)),
        positions=[range(count) for count in counts],
        pieces=pieces,
        variants=variant_names(strengths.shape[2] - 2),
    )
    name, facts = folder.put(
        RUN, folder.piece("impacts", shard), lambda target: frame.write_parquet(target, compression="zstd")
    )
    rows = {"prompts": pl.DataFrame({"prompt_id": list(ids), "num_tokens": counts.astype(np.int32)})}
    files = dict(folder.put(RUN, folder.piece(table, shard), rows[table].write_parquet) for table in rows)
    totals = {"prompts": len(ids), "rejected": 0, "tokens": int(counts.sum()), "rows": frame.height}
    return Receipt(shard=shard, digest="", counts=totals, files={name: facts} | files)


def _distances(count: int, strengths: np.ndarray, random: np.random.Generator) -> np.ndarray:
    shape = (len(strengths), count, strengths.shape[2], 2)
    numbers = np.exp(random.standard_normal(shape, dtype=np.float32) + strengths)
    numbers[:, 0] *= 10
    return numbers


def _pieces(count: int, random: np.random.Generator) -> list[str]:
    return ["<s>", *(f" t{min(int(rank), VOCABULARY)}" for rank in random.zipf(1.3, count - 1))]
