"""What reaches the model's answer: the final hidden state, and the distribution of the next token.

Axes: ``u`` baseline row, ``m`` read, ``e`` residual channel, ``c`` token of the vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from engine.kernels.caps import bent, bent_shift
from engine.kernels.difference import Carried, Origins
from engine.kernels.projection import Projection
from engine.model.decoder import Decoder
from engine.model.stored import StoredProjection
from engine.sweeps.distances import distances

BASELINES = 16
"""Baseline rows whose distributions are held at once."""
ROWS = 256
"""Reads whose logits are made together; the unembedding is read once for all of them."""
CELLS = 1 << 20
"""Logits that become numbers together, so that they stay in the caches."""
SMALL = 1 << 22
"""Size of an unembedding that a processor multiplies in float64, which halves the error of a log-probability."""
LARGEST = 300.0
"""Shifts, in nats, up to which a token that float64 gives no probability at all stays without any."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What each read gives, and what its baseline row did."""

    distances: Float[Tensor, "m metric"]
    """L2, cosine (and relative L2) of the final hidden state, after the final norm."""
    kl: Float[Tensor, " m"]
    """KL(baseline || masked), in nats."""
    logprob: Float[Tensor, " u"]
    """Log-probability of the token that is scored, in the baseline."""
    change: Float[Tensor, " m"]
    """How much it grows, in nats."""
    scored: Int[Tensor, " u"]
    top: Int[Tensor, " m"]
    """The most probable token."""


def answers(decoder: Decoder, stream: Carried, *, targets: Int[Tensor, " u"], relative: bool = False) -> Answers:
    """Read the stream that leaves the last layer. ``targets``: the token to score after each baseline row; -1 is its
    most probable one.
    """
    home, there = targets.device, decoder.unembedding.device
    stream, targets = stream.to(there), targets.to(there)
    wide = torch.float32 if stream.rows.device.type == "mps" else torch.float64
    hidden = decoder.final_norm.to(wide).carry(stream.with_rows(_wide(stream.rows)))
    base, delta = hidden.split(hidden.rows)
    vectors = rearrange(base, "u e -> u 1 e"), rearrange(delta, "m e -> m 1 e")
    moved = distances(*vectors, stream.origins.rows, relative=relative)
    kl, change, top = (delta.new_empty(len(delta), dtype=kind) for kind in (delta.dtype, delta.dtype, torch.int64))
    logprob, scored = [], []
    for start in range(0, len(base), BASELINES):
        some = _Baseline.of(decoder, base[start : start + BASELINES], targets[start : start + BASELINES])
        logprob.append(some.logprob)
        scored.append(some.scored)
        for rows, of in _reads_of(stream.origins, start, start + len(some.scored)):
            kl[rows], change[rows], top[rows] = some.read(decoder, delta.index_select(0, rows), of)
    found = rearrange(moved, "m 1 metric -> m metric")
    every = found, kl, torch.cat(logprob), change, torch.cat(scored), top
    return Answers(*(each.to(home) for each in every))


def _reads_of(origins: Origins, first: int, last: int) -> Iterator[tuple[Int[Tensor, " m"], Int[Tensor, " m"]]]:
    """The reads of some baseline rows, as many at a time as logits are made together, and the row of each."""
    places = np.flatnonzero((origins.host >= first) & (origins.host < last))
    for start in range(0, len(places), ROWS):
        some = places[start : start + ROWS]
        arrays = (some, origins.host[some] - first)
        rows, of = (torch.from_numpy(each).to(origins.device, non_blocking=True) for each in arrays)
        yield rows, of


@dataclass(frozen=True, slots=True)
class _Baseline:
    """Some baseline rows: their logits and probabilities, which token is scored, and its log-probability."""

    uncapped: Float[Tensor, "u c"]
    logits: Float[Tensor, "u c"]
    logprobs: Float[Tensor, "u c"]
    p: Float[Tensor, "u c"]
    scored: Int[Tensor, " u"]
    logprob: Float[Tensor, " u"]

    @classmethod
    def of(cls, decoder: Decoder, base: Float[Tensor, "u e"], targets: Int[Tensor, " u"]) -> "_Baseline":
        unembedding = decoder.unembedding
        products = _products(unembedding.projection, base)
        if unembedding.projection.bias is not None:
            products = products + unembedding.projection.bias
        uncapped = unembedding.scaled(products)
        logits = bent(uncapped, unembedding.soft_cap)
        logprobs = torch.log_softmax(_wide(logits), dim=-1)
        scored = torch.where(targets < 0, logits.argmax(-1), targets)
        logprob = logprobs.gather(1, rearrange(scored, "u -> u 1"))
        return cls(uncapped, logits, logprobs, logprobs.exp(), scored, rearrange(logprob, "u 1 -> u"))

    def read(
        self, decoder: Decoder, delta: Float[Tensor, "m e"], of: Int[Tensor, " m"]
    ) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"], Int[Tensor, " m"]]:
        """KL, change and top token of reads that belong to the rows ``of``."""
        cap = decoder.unembedding.soft_cap
        shifts = decoder.unembedding.scaled(_products(decoder.unembedding.projection, delta))
        # A GPU is not asked in the middle of a pass: there it costs less to compute both.
        far = shifts.device.type != "cpu" or _are_far(shifts)
        at_once = max(1, CELLS // shifts.shape[1])
        parts = []
        for shift, rows in zip(shifts.split(at_once), of.split(at_once), strict=True):
            every = (self.uncapped, self.logits, self.logprobs, self.p)
            uncapped, logits, logprobs, p = (_of_rows(each, rows) for each in every)
            moved, scored = bent_shift(uncapped, shift, cap), self.scored.index_select(0, rows)
            parts.append(_read(moved, logits, logprobs, p, scored, far=far))
        kl, change, top = (torch.cat(each) for each in zip(*parts, strict=True))
        return kl, change, top


def _are_far(shifts: Float[Tensor, "m c"]) -> bool:
    """Whether a row's shifts lie so far apart that they need the longer way of ``_read``."""
    return bool((shifts.amax(-1) - shifts.amin(-1) > LARGEST).any())


def _read(
    shift: Float[Tensor, "m c"],
    logits: Float[Tensor, "_ c"],
    logprobs: Float[Tensor, "_ c"],
    p: Float[Tensor, "_ c"],
    scored: Int[Tensor, " m"],
    *,
    far: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """With the mean μ = Σ p·δ of the shifts δ and x = δ - μ: KL = log Σ p·exp(δ) - μ = log1p(Σ p·expm1(x)), which loses
    no digits however small the shifts are, because Σ p·x = 0; and the log-probability of a token grows by x - KL.
    Where shifts are so ``far`` apart that one may lift a token from no probability to the top, logarithms are added.
    """
    top = (logits + shift).argmax(-1)
    x = _wide(shift)
    x -= torch.linalg.vecdot(p, x)[:, None]
    own = rearrange(x.gather(1, rearrange(scored, "m -> m 1")), "m 1 -> m")
    beyond = torch.where(x.amax(-1) > LARGEST, torch.logsumexp(logprobs + x, dim=-1), torch.nan) if far else None
    kl = torch.linalg.vecdot(p, x.clamp_(max=LARGEST).expm1_()).log1p_()
    kl = kl if beyond is None else torch.where(beyond.isnan(), kl, beyond)
    return kl, own - kl, top


def _of_rows(x: Float[Tensor, "u c"], rows: Int[Tensor, " m"]) -> Float[Tensor, "_ c"]:
    """The baseline row of each read; one for all where there is only one."""
    return x if len(x) == 1 else x.index_select(0, rows)


def _products(unembedding: Projection | StoredProjection, rows: Float[Tensor, "n e"]) -> Float[Tensor, "n c"]:
    """The rows times the unembedding, without bias; in float64 where that costs little."""
    if rows.device.type == "cpu" and unembedding.num_cells <= SMALL:
        return unembedding.wide_product(rows)
    return unembedding.product(rows.to(torch.promote_types(unembedding.dtype, torch.float32)))


def _wide(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    return x if x.device.type == "mps" else x.double()
