"""The experiment, from a prompt to its impact table: the one place where all parts meet."""

import gc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from engine.adoption import Edition, adopt
from engine.checkpoints import load_decoder
from engine.decoder import Decoder
from engine.devices import free_host_bytes, keep_freed_memory, memory_errors
from engine.distances import measure_readouts
from engine.errors import ModelError, NumbersError, PromptError
from engine.knockouts import Knockouts, select, single_tokens
from engine.passes import Pass
from engine.pieces import readable_pieces
from engine.products import exact_products
from engine.prompts import Prompt, read_prompt
from engine.replay import Replay
from engine.sweep import Readout
from engine.table import build_table, variant_names

CACHED_BYTES = 1 << 26
"""Weights up to this size stay in a processor's caches, where their order hardly matters."""


@dataclass(frozen=True)
class Impact:
    """The measured impact of one prompt's tokens; ``distances`` are (L2, cosine), NaN where undefined."""

    prompt: Prompt
    layers: tuple[int, ...]
    tokens: tuple[int, ...]
    variants: tuple[str, ...]
    distances: Float[np.ndarray, "l v site 2"]
    next_tokens: tuple[tuple[str, float], ...] = ()
    """The baseline's most probable next tokens with their probabilities, when they were asked for."""

    def table(self) -> pl.DataFrame:
        """The long table: one row per layer, masked token and variant."""
        return build_table(
            self.distances,
            layers=self.layers,
            positions=self.tokens,
            pieces=[self.prompt.pieces[position] for position in self.tokens],
            variants=self.variants,
        )


class AttentionMasker:
    """Measures how far each layer's output moves when attention to a token is cut.

    ``AttentionMasker(model, tokenizer=None)`` takes a transformers model that is already loaded and only reads it, or a
    ``Decoder``; ``AttentionMasker.from_pretrained(...)`` loads a checkpoint. Weights of a model that you edit in place
    are taken anew at the next run; only an edit through ``.data``, which torch does not count, needs a new masker.
    On a CPU the process keeps freed memory for its next use, up to 31 MiB a block. Raises ``ModelError`` for an
    architecture that is not supported.
    """

    def __init__(self, model: nn.Module | Decoder, tokenizer: Any = None) -> None:
        if tokenizer is not None and not hasattr(tokenizer, "convert_ids_to_tokens"):
            raise ModelError(f"a {type(tokenizer).__name__} is no tokenizer; hand in a transformers one, or None")
        self._held = None if isinstance(model, Decoder) else model
        self.decoder = model if isinstance(model, Decoder) else adopt(model)
        self._edition = None if self._held is None else Edition(self._held)
        self.tokenizer = tokenizer
        self._runs = 0
        self.replay = Replay()
        if self.decoder.device.type == "cpu":
            keep_freed_memory()

    @classmethod
    def from_pretrained(
        cls, model: str | None = None, *, device: str | torch.device = "auto", dtype: str | torch.dtype = "float32"
    ) -> "AttentionMasker":
        """Load a local folder or a hub id; None is the model that ships with the program.

        ``device``: auto, cpu, cuda, cuda:N or mps. ``dtype``: float32, float64, or bfloat16 (products in bfloat16,
        everything between them in float32). Raises ``ModelError`` and ``DeviceError``.
        """
        return cls(*load_decoder(model, device=device, dtype=dtype))

    def run(
        self,
        prompt: str | Sequence[int],
        *,
        layers: Sequence[int] | None = None,
        tokens: Sequence[int] | None = None,
    ) -> pl.DataFrame:
        """The impact table of ``prompt`` (text or token ids), for the chosen layers and token positions (default: all).

        Columns: layer, token_masked, token_position, variant, l2_distance, cosine_distance; undefined cells are null.
        Costs about one forward pass for a short prompt. Raises ``PromptError``, ``SelectionError``, ``NumbersError``
        and, when memory runs out, ``DeviceError``.
        """
        return self.measure(prompt, layers=layers, tokens=tokens).table()

    def measure(
        self,
        prompt: str | Sequence[int],
        *,
        layers: Sequence[int] | None = None,
        tokens: Sequence[int] | None = None,
        next_tokens: int = 0,
        watch: Callable[[Iterable[Readout]], Iterable[Readout]] = iter,
    ) -> Impact:
        """As ``run``, with the labels beside the numbers and, if asked, the ``next_tokens`` likeliest next tokens.

        ``watch`` wraps the layers as they pass, for a progress bar.
        """
        self._take_edits()
        read = self.read(prompt)
        chosen = select(layers, len(self.decoder.layers), what="layer")
        knockouts = single_tokens(len(read), tokens)
        undefined = self._undefined(knockouts, chosen)
        self._settle()
        one, prompts = Pass(self.decoder, (len(read),), (knockouts,), chosen), [read.token_ids]
        replayable = watch is iter and not next_tokens and not undefined.any()
        with torch.inference_mode(), exact_products(self.decoder.device), memory_errors(self.decoder.device):
            cells = self.replay.distances(one, prompts) if replayable else None
            if cells is None:
                batch = one.batch(prompts)
                readouts = watch(one.readouts(batch, to_end=next_tokens > 0))
                measured, residual = measure_readouts(readouts, batch.query_origins.rows, limits=one.limits)
                cells = measured.cpu().numpy()
            if np.isinf(cells).any() or np.isnan(cells[..., 0]).any():
                raise NumbersError(_what_broke(one.first_broken_layer(prompts)))
            likeliest = self._likeliest(residual, next_tokens) if next_tokens else ()
        cells[undefined] = np.nan
        variants = tuple(variant_names(self.decoder.heads.num_heads))
        return Impact(read, chosen, tuple(p for (p,) in knockouts.masked), variants, cells, likeliest)

    def read(self, prompt: str | Sequence[int]) -> Prompt:
        """Tokenize and check a prompt. Raises ``PromptError``."""
        limits = {"vocab_size": self.decoder.vocab_size, "max_positions": self.decoder.max_positions}
        return read_prompt(prompt, self.tokenizer, **limits)

    def _take_edits(self) -> None:
        """Read a held model again if its weights were replaced or edited since they were read."""
        if self._held is not None and self._edition is not None and not self._edition.is_current():
            self.decoder = adopt(self._held)
            self._edition, self._runs = Edition(self._held), 0

    def _settle(self) -> None:
        """Before the second run, lay the weights out for the CPU's kernel: a masker that is used again is a session.

        Packing takes one to two seconds per gigabyte, once, and makes every later run faster. The packed weights
        replace the masker's own; a model that the user holds keeps its weights, so memory must allow a copy.
        """
        self._runs += 1
        if self._runs != 2 or self.decoder.device.type != "cpu":
            return
        if CACHED_BYTES < self.decoder.weight_bytes < free_host_bytes():
            gc.collect()
            with torch.inference_mode():
                self.decoder.pack()

    def _undefined(self, knockouts: Knockouts, layers: Sequence[int]) -> Bool[np.ndarray, "l v"]:
        """The cells whose query is left with nothing to attend to. Raises ``PromptError`` if that is all of them."""
        windows = [self.decoder.layers[layer].attention.window for layer in layers]
        by_window = {window: knockouts.undefined(window) for window in set(windows)}
        undefined = np.stack([by_window[window] for window in windows])
        if undefined.all():
            raise PromptError(
                "nothing can be measured: every chosen token is the only one that its query attends to; "
                "choose other tokens, or a longer prompt"
            )
        return undefined

    def _likeliest(self, residual: Float[Tensor, "b e"], count: int) -> tuple[tuple[str, float], ...]:
        """The most probable next tokens after the prompt, from the stream that leaves the last layer at the query."""
        logits = self.decoder.logits(residual)[0].float()
        if not logits.isfinite().all():
            return ()
        top = torch.softmax(logits, dim=-1).topk(min(count, len(logits)))
        pieces = readable_pieces(top.indices.tolist(), self.tokenizer)
        return tuple(zip(pieces, top.values.tolist(), strict=True))


def run_masking_experiment(
    prompt: str | Sequence[int],
    *,
    model: str | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "float32",
    layers: Sequence[int] | None = None,
    tokens: Sequence[int] | None = None,
) -> pl.DataFrame:
    """Load ``model``, measure one prompt and return its impact table; see ``AttentionMasker`` for the arguments.

    For several prompts, load once: ``AttentionMasker.from_pretrained(...)`` and then ``run`` for each.
    """
    masker = AttentionMasker.from_pretrained(model, device=device, dtype=dtype)
    return masker.run(prompt, layers=layers, tokens=tokens)


def _what_broke(layer: int | None) -> str:
    if layer is None:
        return "a distance is not finite although the activations are; choose --dtype float64"
    return (
        f"the activations that leave layer {layer} are not finite (NaN or infinity); check the weights of the "
        "checkpoint, and choose --dtype float32 if they were narrower"
    )
