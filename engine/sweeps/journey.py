"""What travels through a decoder, and where its rows lie: the baseline's, one per token, and behind them the forks'
differences, bundle by bundle.

Axes as in ``shifts``; ``r`` baseline row ``(b s)``; a bundle's rows are ``(f b n)``, one for each position that it
carries.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from engine.kernels.difference import Carried, Origins
from engine.model.decoder import Decoder
from engine.questions.question import Intervention
from engine.sweeps.readout import Limits
from engine.text.forks import Bundle


@dataclass(frozen=True)
class Journey:
    """What travels: prompts of one length, the bundles of forks that each of them gets, and how they are cut."""

    decoder: Decoder
    token_ids: Int[Tensor, "b s"]
    bundles: tuple[Bundle, ...]
    intervention: Intervention
    heads: Bool[np.ndarray, "l h"] | None
    num_prompt: int
    """Tokens of the prompt itself; the rest is the answer that follows it."""
    limits: Limits

    def to(self, device: torch.device) -> "Journey":
        """The same journey for the layers on another device."""
        if device == self.decoder.device:
            return self
        return replace(self, decoder=self.decoder.seen_from(device), token_ids=self.token_ids.to(device))

    @property
    def num_positions(self) -> int:
        """The length by which rotary tables may be scaled: that of the whole prompt, even where its end is left out."""
        return max(self.num_prompt, self.token_ids.shape[1])

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Rows of one fork of each bundle, in all prompts."""
        return tuple(len(self.token_ids) * bundle.num_positions for bundle in self.bundles)

    def on_device(self, array: np.ndarray) -> Tensor:
        """An array where the decoder is."""
        return torch.from_numpy(array).to(self.decoder.device, non_blocking=True)

    def carried(self, rows: Float[Tensor, "n c"], active: Sequence[int]) -> Carried:
        """Rows with the baseline row that each difference belongs to."""
        b, s = self.token_ids.shape
        host = np.concatenate([np.zeros(0, dtype=np.int64), *self._origins(active)])
        return Carried(rows, b * s, Origins(host, self.decoder.device))

    def _origins(self, active: Sequence[int]) -> Iterator[Int[np.ndarray, " fbn"]]:
        b, s = self.token_ids.shape
        for bundle, count in zip(self.bundles, active, strict=True):
            rows = np.arange(b)[:, None] * s + np.arange(bundle.start, bundle.stop)
            yield np.tile(rows.ravel(), count)

    def positions(self, active: Sequence[int]) -> Int[Tensor, " n"]:
        """The position of every row."""
        b, s = self.token_ids.shape
        return self.on_device(np.concatenate([np.arange(b * s), *self._origins(active)]) % s)

    def bundled(self, delta: Float[Tensor, "m ..."], active: Sequence[int]) -> list[Float[Tensor, "fbn ..."]]:
        """Difference rows by bundle."""
        return list(delta.split([count * size for count, size in zip(active, self.sizes, strict=True)]))

    def widened(self, rows: Tensor, before: int, active: int, size: int) -> Tensor:
        """Rows of forks that join, which are zeros, behind those that are there."""
        missing = (active - before) * size
        return F.pad(rows, (0, 0) * (rows.ndim - 1) + (0, missing)) if missing else rows

    def grid(self, rows: Float[Tensor, "fbn h d"], bundle: Bundle, before: int, active: int) -> Tensor:
        """A bundle's rows by fork, prompt and position."""
        b, n = len(self.token_ids), bundle.num_positions
        wide = self.widened(rows, before, active, b * n)
        return rearrange(wide, "(f b n) h d -> f b n h d", b=b, n=n)
