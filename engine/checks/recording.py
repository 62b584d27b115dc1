"""Writes the record of the embedded model anew, from transformers' own float32 forward.

python -m engine.checks.recording
"""

from collections.abc import Iterator

import torch
from safetensors.torch import save_file
from torch import Tensor

from engine.checks.account import Account, Probing, engine_accounts
from engine.checks.oracles import stored_oracle
from engine.checks.record import PAIRS, STREAMS, record_path
from engine.model.checkpoints import load_decoder


def recorded() -> dict[str, Tensor]:
    """What transformers tells of the embedded model, by the names in the record."""
    decoder, _ = load_decoder(None, device="cpu")
    probing = Probing.of(decoder)
    ours, _ = engine_accounts(decoder, probing, len(decoder.layers))
    accounts, logits = stored_oracle(decoder).tell(probing, [account.entering for account in ours])
    named = {"token_ids": torch.tensor(probing.token_ids), "logits": logits}
    for index, account in enumerate(accounts):
        named |= {f"{index}.{name}": tensor for name, tensor in _tensors(account)}
    return {name: tensor.float().contiguous() for name, tensor in named.items()}


def _tensors(account: Account) -> Iterator[tuple[str, Tensor]]:
    yield from ((name, getattr(account, name)) for name in STREAMS)
    for name in PAIRS:
        pair = getattr(account, name)
        yield from ((f"{name}.baseline", pair.baseline), (f"{name}.delta", pair.delta))


if __name__ == "__main__":
    with torch.no_grad():
        save_file(recorded(), record_path())
