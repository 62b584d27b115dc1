"""What one layer did with a short probe, in the same words whoever ran it, and the engine's own account.

Axes: ``s`` position, ``e`` residual channel, ``n`` vector (a head, or the one of the layer), ``c`` its channels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from engine.kernels.attention import query_scores
from engine.kernels.batches import Batch, make_batch
from engine.kernels.masks import query_masks
from engine.kernels.projection import Projection
from engine.kernels.scores import softmax
from engine.model.decoder import Decoder
from engine.model.foreign import Foreign
from engine.model.stored import StoredProjection
from engine.model.view import View
from engine.sweeps.readout import Readout, Site
from engine.sweeps.relay import relay
from engine.sweeps.sweep import sweep
from engine.text.knockouts import single_tokens

STEP = 7919
"""A prime: the probed token ids lie far apart, in any vocabulary."""


@dataclass(frozen=True)
class Probing:
    """A short prompt that is read at its end, with one earlier token ``hidden``."""

    token_ids: tuple[int, ...]

    @classmethod
    def of(cls, view: View, *, num_tokens: int = 8) -> "Probing":
        """The probe of a model, as long as its positions allow.

        Where tables depend on the length, transformers' own remember the longest prompt so far, unless one is short.
        """
        length = min(num_tokens, view.max_positions // 4 if view.rope_by_length else view.max_positions)
        return cls(tuple((index + 1) * STEP % view.vocab_size for index in range(length)))

    @property
    def hidden(self) -> int:
        return len(self.token_ids) - 2


@dataclass(frozen=True)
class Pair:
    """Vectors at the query, and how they differ when the token is hidden in this layer alone."""

    baseline: Float[Tensor, "n c"]
    delta: Float[Tensor, "n c"]


@dataclass(frozen=True)
class Account:
    """One layer on the probe, in float64 on the host: the stream before and after it, and what it did at the query."""

    entering: Float[Tensor, "s e"]
    leaving: Float[Tensor, "_ e"]
    """All positions, or the query's alone where nothing reads the others."""
    update: Pair
    attn: Pair | None = None
    z: Pair | None = None
    is_routed: bool = False
    """Whether the layer has experts to choose from."""


def engine_accounts(view: View, probing: Probing, num_layers: int) -> tuple[list[Account], Float[Tensor, "1 e"]]:
    """The engine's account of the first ``num_layers`` layers, and the stream that leaves them at the query."""
    batch = make_batch([probing.token_ids], [single_tokens(len(probing.token_ids), [probing.hidden])], view.device)
    found, residual, entering = [], None, _entering(view, batch)
    for readout in _readouts(view, batch, num_layers):
        residual = readout.residual[-1:]
        found.append(_account(readout, entering))
        entering = found[-1].leaving
    assert residual is not None
    return found, residual


def engine_logits(view: View, residual: Float[Tensor, "1 e"], count: int) -> Float[Tensor, " c"]:
    """The engine's logits of the first ``count`` tokens, or of all; of a vocabulary in a file no more is read."""
    if isinstance(view, Decoder) and isinstance(view.unembedding.projection, StoredProjection):
        stored = view.unembedding.projection
        first = Projection((stored.table.rows(torch.arange(count, device="cpu")),), split=stored.split)
        first.bias = None if stored.bias is None else stored.bias[:count]
        view = replace(view, unembedding=replace(view.unembedding, projection=first))
    return on_host(view.logits(residual)[0, :count])


def leaks(decoder: Decoder, probing: Probing, accounts: Sequence[Account]) -> Iterator[Tensor]:
    """For each layer the largest weight that the hidden token keeps in its pattern, which is to be exactly 0."""
    batch = make_batch([probing.token_ids], [single_tokens(len(probing.token_ids), [probing.hidden])], decoder.device)
    for index, (account, place) in enumerate(zip(accounts, decoder.places, strict=False)):
        here, layer = decoder.seen_from(place), decoder.layers[index]
        rows, attention = batch.to(place), layer.attention
        rotaries = here.rotaries(rows.positions, rows.prompts.width)
        stream = account.entering.to(place, decoder.dtype)
        q, k, _ = layer.project(stream, rotaries, max_rows=len(stream))
        masks, scoring = query_masks(rows, attention.window), attention.scoring
        scores = query_scores(rows.at_query(q), rows.prompts.heads(k), scoring=scoring, visible=masks.visible)
        hidden = rearrange(rows.hidden, "b 1 1 1 k -> b 1 1 k")
        pattern = softmax(torch.where(hidden, -torch.inf, scores), scoring.sink(attention.heads.num_kv_heads, "kv g 1"))
        yield pattern[..., probing.hidden].amax()


def _readouts(view: View, batch: Batch, num_layers: int) -> Iterator[Readout]:
    if isinstance(view, Decoder):
        return sweep(view, batch, layers=range(num_layers))
    assert isinstance(view, Foreign)
    return relay(view, batch, layers=range(num_layers))


def _entering(view: View, batch: Batch) -> Float[Tensor, "s e"]:
    if isinstance(view, Decoder):
        return on_host(view.embed(batch.token_ids, batch.positions))
    assert isinstance(view, Foreign)
    return on_host(view.visits(batch.token_ids)[0].entering[0])


def _account(readout: Readout, entering: Float[Tensor, "s e"]) -> Account:
    update, attn, z = map(_pair, readout.sites[:3])
    return Account(entering, on_host(readout.residual), update, attn, z)


def _pair(site: Site) -> Pair:
    vectors = (rearrange(x, "1 (n c) -> n c", n=site.num_vectors) for x in (site.baseline, site.delta))
    return Pair(*map(on_host, vectors))


def on_host(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """A copy in float64 in the machine's memory, where a sum of any dtype is exact enough to compare with."""
    return x.detach().cpu().double()
