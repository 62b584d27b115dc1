"""Models and prompts without a download: the embedded demo model, and random models of stated shapes.

Random weights are drawn in bfloat16, as real checkpoints store them, and widened to the dtype asked for. What a forward
costs depends on shapes alone, so they time like the real model. Their answers mean nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from benchmarks.report import Labels

DEMO_FOLDER = Path(__file__).parents[1] / "engine" / "demo" / "model"
DEMO_TEXT = "The Eiffel Tower is in Paris. The Louvre is in Paris. The Brandenburg Gate is in Berlin."
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a Qwen3 model with tied embeddings and q/k norm; the names are those of its configuration."""

    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int


SHAPES = {
    "tiny": Shape(
        num_hidden_layers=3,
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        intermediate_size=64,
        vocab_size=256,
    ),
    "small": Shape(
        num_hidden_layers=6,
        hidden_size=512,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        intermediate_size=1536,
        vocab_size=2048,
    ),
    # https://huggingface.co/Qwen/Qwen3-0.6B/blob/main/config.json
    "qwen3-0.6b": Shape(
        num_hidden_layers=28,
        hidden_size=1024,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=3072,
        vocab_size=151936,
    ),
    # https://huggingface.co/Qwen/Qwen3-8B/blob/main/config.json
    "qwen3-8b": Shape(
        num_hidden_layers=36,
        hidden_size=4096,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=12288,
        vocab_size=151936,
    ),
}
UNTIED = ("qwen3-8b",)
"""Shapes with an unembedding of their own."""
SMALL = 50_000_000
"""Parameters up to which running a model hundreds of times, or in float64, is cheap."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A model in evaluation mode on its device, and one prompt."""

    name: str
    model: PreTrainedModel
    token_ids: list[int]

    @property
    def label(self) -> str:
        """Name, prompt length and any dtype but float32, for tables."""
        label = f"{self.name}, {len(self.token_ids)} tokens"
        return label if self.dtype == "float32" else f"{label}, {self.dtype}"

    @property
    def dtype(self) -> str:
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def labels(self) -> Labels:
        """What a row of a report says of the workload."""
        return {"workload": self.name, "dtype": self.dtype, "x": len(self.token_ids)}

    @property
    def num_layers(self) -> int:
        return self.model.config.num_hidden_layers

    def of_length(self, length: int) -> "Workload":
        """The same model with a prompt of another length."""
        own = self.name == "demo"
        token_ids = demo_prompt(length) if own else random_prompt(length, vocab_size=self.model.config.vocab_size)
        return Workload(name=self.name, model=self.model, token_ids=token_ids)


def load_workload(
    name: str, *, length: int, device: str = "cpu", dtype: str = "float32", seed: int = 0, peak: float = 1.0
) -> Workload:
    """The demo model with sentences it knows, or a random model with random tokens; ``length`` in tokens.

    ``peak`` makes the attention of a random model peaked, see ``random_model``; the demo model stays as it was trained.
    """
    if name == "demo":
        model = demo_model(device=device, dtype=dtype)
        return Workload(name=name, model=model, token_ids=demo_prompt(length))
    model = random_model(SHAPES[name], device=device, dtype=dtype, seed=seed, peak=peak)
    token_ids = random_prompt(length, vocab_size=SHAPES[name].vocab_size, seed=seed)
    label = name if peak == 1.0 else f"{name}, q and k norms x {peak:g}"
    return Workload(name=label, model=model, token_ids=token_ids)


def demo_model(*, device: str = "cpu", dtype: str = "float32") -> PreTrainedModel:
    """The model that ships with the program, from its folder."""
    if not DEMO_FOLDER.is_dir():
        raise FileNotFoundError(f"{DEMO_FOLDER} is missing; run python -m engine.demo.train, or choose another --shape")
    return AutoModelForCausalLM.from_pretrained(DEMO_FOLDER, dtype=DTYPES[dtype]).to(device).eval()


def demo_prompt(length: int) -> list[int]:
    """The first ``length`` tokens of sentences that the demo model knows, repeated as often as it takes."""
    token_ids = AutoTokenizer.from_pretrained(DEMO_FOLDER)(DEMO_TEXT)["input_ids"]
    return list(islice(cycle(token_ids), length))


def random_prompt(length: int, *, vocab_size: int, seed: int = 0) -> list[int]:
    """Token ids drawn evenly from the vocabulary."""
    return torch.randint(vocab_size, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def random_model(
    shape: Shape, *, device: str = "cpu", dtype: str = "float32", seed: int = 0, peak: float = 1.0
) -> PreTrainedModel:
    """A seeded random Qwen3; takes 5 s for 0.6 billion weights and never holds them twice.

    ``peak`` multiplies the weights of the q and k norms. Scores of random weights have a standard deviation of about
    ``peak ** 2``, so 1 is mild attention, and 2.7 leaves most tokens 1e-4 of a head or less.
    """
    config = Qwen3Config(
        **vars(shape),
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        max_position_embeddings=40960,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
    )
    with torch.device("meta"):
        model = Qwen3ForCausalLM(config)
    model = model.to(DTYPES[dtype]).to_empty(device=device)
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(device)
    _fill(model, seed=seed, peak=peak)
    return model.eval()


@torch.no_grad()
def _fill(model: PreTrainedModel, *, seed: int, peak: float) -> None:
    """Norm weights around 1 (times ``peak`` for q and k), embeddings of size 1, matrices that keep the size of rows."""
    generator = torch.Generator(device=model.device).manual_seed(seed)
    for name, parameter in model.named_parameters():
        drawn = torch.empty_like(parameter, dtype=torch.bfloat16)
        if parameter.ndim == 1:
            drawn.uniform_(0.8, 1.2, generator=generator).mul_(peak if "q_norm" in name or "k_norm" in name else 1.0)
        else:
            limit = 3**0.5 if "embed" in name else (3 / parameter.shape[1]) ** 0.5
            drawn.uniform_(-limit, limit, generator=generator)
        parameter.copy_(drawn)


def layer_weights(model: PreTrainedModel) -> Iterator[Tensor]:
    """The matrices that every row of a forward is multiplied with; embedding and vocabulary head are not among them."""
    return (parameter for parameter in model.base_model.layers.parameters() if parameter.ndim == 2)


def is_small(model: PreTrainedModel) -> bool:
    """Whether it is cheap to run the model hundreds of times."""
    return sum(parameter.numel() for parameter in model.parameters()) <= SMALL
