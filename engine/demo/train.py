"""Make the demo model: tokenizer, training, measurement, folder.

    python -m engine.demo.train [--output DIR] [--seed N] [--steps N]

Deterministic for a seed on one machine. The weights are rounded to bfloat16 before they are measured and stored.
"""

import argparse
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM
from transformers.utils.logging import disable_progress_bar

from engine.demo import demo_folder
from engine.demo.corpus import END, Piece, documents
from engine.demo.evaluate import CaseSets, all_cases, load_demo, measure
from engine.demo.facts import Fact, load_facts
from engine.demo.store import add_card, replace_folder, save_model
from engine.demo.tokenizer import save_tokenizer, train_tokenizer

BATCH_SIZE = 64
SORTED_BATCHES = 16  # texts of so many batches are sorted by length, which keeps padding small
PEAK_LEARNING_RATE = 3e-3
WARMUP_SHARE = 0.05
WEIGHT_DECAY = 0.05
THREADS = 1


def build_model(tokenizer: Tokenizer) -> Qwen3ForCausalLM:
    """An untrained Qwen3 of about one million parameters."""
    end = tokenizer.token_to_id(END)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            tie_word_embeddings=True,
            attention_dropout=0.0,
            max_position_embeddings=4096,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
            initializer_range=0.04,
            bos_token_id=None,
            eos_token_id=end,
            pad_token_id=end,
        )
    )


def encode(pieces: list[Piece], tokenizer: Tokenizer) -> tuple[Tensor, Tensor]:
    """Token ids of a document and each token's weight in the loss."""
    tokens: list[int] = []
    weights: list[float] = []
    for piece in pieces:
        ids = tokenizer.encode(piece.text).ids
        tokens += ids
        weights += [0.0 if piece.skip_first else piece.weight, *[piece.weight] * (len(ids) - 1)]
    return torch.tensor(tokens), torch.tensor(weights)


def batches(facts: list[Fact], tokenizer: Tokenizer, *, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Padded batches of (tokens, weights) without end; padding weighs 0."""
    source = documents(facts, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    while True:
        rows = [encode(pieces, tokenizer) for pieces in islice(source, BATCH_SIZE * SORTED_BATCHES)]
        rows.sort(key=lambda row: len(row[0]))
        for index in torch.randperm(SORTED_BATCHES, generator=generator).tolist():
            tokens, weights = zip(*rows[index * BATCH_SIZE : (index + 1) * BATCH_SIZE], strict=True)
            yield pad_sequence(list(tokens), batch_first=True), pad_sequence(list(weights), batch_first=True)


def weighted_loss(model: PreTrainedModel, tokens: Tensor, weights: Tensor) -> Tensor:
    """Mean cross entropy of the next tokens in nats, by their weights; tokens without weight cost no logits."""
    targets, weights = tokens[:, 1:], weights[:, 1:]
    counted = weights > 0
    hidden = model.base_model(tokens).last_hidden_state[:, :-1][counted]
    losses = functional.cross_entropy(model.get_output_embeddings()(hidden), targets[counted], reduction="none")
    return (losses * weights[counted]).sum() / weights.sum()


def train(model: PreTrainedModel, source: Iterator[tuple[Tensor, Tensor]], *, steps: int) -> None:
    """Train in place with AdamW, a short warm-up and a cosine that ends at zero."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_LEARNING_RATE, total_steps=max(steps, 2), pct_start=WARMUP_SHARE, cycle_momentum=False
    )
    model.train()
    for step, (tokens, weights) in zip(range(1, steps + 1), source, strict=False):
        loss = weighted_loss(model, tokens, weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == steps:
            print(f"step {step} of {steps}: loss {loss.item():.3f}", flush=True)
    model.eval()


def make_demo(output: Path, *, seed: int, steps: int, cases: CaseSets) -> str:
    """Train the demo model, store it in `output` and measure it on `cases`; the report that its card carries."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(seed)
    started = time.perf_counter()
    facts = load_facts()
    tokenizer = train_tokenizer(facts, seed=seed)
    model = build_model(tokenizer)
    train(model, batches(facts, tokenizer, seed=seed), steps=steps)
    seconds = time.perf_counter() - started
    with replace_folder(output) as folder:
        save_model(model, folder)
        save_tokenizer(tokenizer, folder)
        figures, _ = measure(*load_demo(folder), cases)
        add_card(folder, figures=figures, seed=seed, steps=steps, seconds=seconds)
    return figures


def parse_arguments() -> argparse.Namespace:
    """The command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m engine.demo.train", description="Train and store the demo model.")
    parser.add_argument("--output", type=Path, default=demo_folder(), help="folder to write (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of texts and weights (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=1200, help="training steps (default: %(default)s)")
    return parser.parse_args()


def main() -> None:
    """Make the model and print its figures."""
    arguments = parse_arguments()
    disable_progress_bar()
    print(make_demo(arguments.output, seed=arguments.seed, steps=arguments.steps, cases=all_cases()))


if __name__ == "__main__":
    main()
