"""What transformers computes of the embedded model, on record: its modelling code takes a second to import.

The record, which ``recording`` writes, says for which probe it was made; for another one transformers is asked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from engine.checks.account import Account, Pair, Probing
from engine.checks.witness import Stream
from engine.demo import demo_folder
from engine.errors import ModelError
from engine.model.decoder import Rope
from engine.model.tensors import read_header

RECORD = "testimony.safetensors"
STREAMS, PAIRS = ("entering", "leaving"), ("update", "attn", "z")


@dataclass(frozen=True)
class Recorded:
    """An oracle that was asked before; see ``Oracle``. It heard of other streams than those given, by rounding."""

    accounts: list[Account]
    logits: Float[Tensor, " c"]
    precision = own = torch.float32

    @property
    def num_layers(self) -> int:
        return len(self.accounts)

    def tell(self, probing: Probing, given: Sequence[Stream]) -> tuple[list[Account], Float[Tensor, " c"]]:
        """What is on record."""
        return self.accounts, self.logits

    def ropes(self) -> Mapping[str, Rope]:
        """None is on record; the accounts tell enough of a rope that is not scaled."""
        return {}


def record_path() -> Path:
    """Where the record lies."""
    return demo_folder().parent / RECORD


def read_record(probing: Probing) -> Recorded | None:
    """The record of this probe; None where there is none."""
    try:
        stored = {name: tensor.read().double() for name, tensor in read_header(record_path()).items()}
    except ModelError:
        return None
    if stored["token_ids"].tolist() != list(probing.token_ids):
        return None
    count = sum(name.endswith(".entering") for name in stored)
    return Recorded([_account(stored, f"{index}.") for index in range(count)], stored["logits"])


def _account(stored: Mapping[str, Tensor], at: str) -> Account:
    update, attn, z = (Pair(stored[f"{at}{name}.baseline"], stored[f"{at}{name}.delta"]) for name in PAIRS)
    entering, leaving = (stored[at + name] for name in STREAMS)
    return Account(entering, leaving, update, attn, z)
