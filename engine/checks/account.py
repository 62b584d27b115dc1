"""What one layer did with a short probe, in the same words whoever ran it, and the engine's own account.

Axes: ``s`` position, ``e`` residual channel, ``n`` vector (a head, or the one of the layer), ``c`` its channels.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
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
from engine.sweeps.readout import Limits, Readout, Site
from engine.sweeps.relay import relay
from engine.sweeps.sweep import sweep
from engine.text.knockouts import single_tokens

STEP = 7919
"""A prime: the probed token ids lie far apart, in any vocabulary."""


@dataclass(frozen=True)
class Probing:
    """A short prompt that is read at its end, with one earlier token hidden."""

    token_ids: tuple[int, ...]

    @classmethod
    def of(cls, view: View, *, num_tokens: int = 8) -> "Probing":
        """The probe of a model, as long as its positions allow."""
        length = min(num_tokens, view.max_positions)
        return cls(tuple((index + 1) * STEP % view.vocab_size for index in range(length)))

    def hidden(self, layer: int) -> int:
        """The token that is hidden in a layer: one layer shows a mask at one key, all of them at every key."""
        return layer % (len(self.token_ids) - 1)

    @property
    def all_hidden(self) -> range:
        """Every token but the last."""
        return range(len(self.token_ids) - 1)


Sees = Callable[[int], Bool[Tensor, " k"]]
"""Query position -> True for the keys up to it that it may attend to."""


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
    settled: Bool[Tensor, "copy s"] | None = None
    """Of a routed layer, if it is told: the tokens, of the prompt and of its copy with a token hidden, whose experts
    were not chosen by a hair."""
    sees: Sees | None = None
    """Which keys a query sees in this layer, however far away."""


def engine_accounts(view: View, probing: Probing, num_layers: int) -> tuple[list[Account], Float[Tensor, "1 e"]]:
    """The engine's account of the first ``num_layers`` layers, and the stream that leaves them at the query."""
    batch = _batch(view, probing)
    found, residual, entering = [], None, _entering(view, batch)
    for readout in _readouts(view, batch, num_layers):
        residual = readout.residual[-1:]
        found.append(_account(readout, entering, probing.hidden(readout.layer)))
        entering = found[-1].leaving
    assert residual is not None
    return found, residual


def first_account(decoder: Decoder, probing: Probing, limits: Limits) -> Account:
    """The engine's account of the first layer alone, by the kernels that ``limits`` choose.

    The pass would go on: a last layer needs no other head outputs than the query's.
    """
    batch = _batch(decoder, probing)
    readout = next(sweep(decoder, batch, layers=range(min(2, len(decoder.layers))), limits=limits))
    return _account(readout, _entering(decoder, batch), probing.hidden(0))


def logit_ids(vocab_size: int, count: int) -> Int[Tensor, " c"]:
    """Tokens from the whole vocabulary, the first and the last among them, whose logits are compared."""
    return torch.arange(count) * (vocab_size - 1) // max(1, count - 1)


def engine_logits(view: View, residual: Float[Tensor, "1 e"], count: int) -> Float[Tensor, " c"]:
    """The engine's logits of ``count`` tokens, see ``logit_ids``; of a vocabulary in a file no more is read."""
    ids = logit_ids(view.vocab_size, count)
    if isinstance(view, Decoder) and isinstance(view.unembedding.projection, StoredProjection):
        stored = view.unembedding.projection
        some = Projection((stored.table.rows(ids),), split=stored.split)
        some.bias = None if stored.bias is None else stored.bias[ids.to(stored.bias.device)]
        view = replace(view, unembedding=replace(view.unembedding, projection=some))
        return on_host(view.logits(residual)[0])
    return on_host(view.logits(residual)[0])[ids]


def leaks(decoder: Decoder, probing: Probing, accounts: Sequence[Account]) -> Iterator[Tensor]:
    """For each layer the largest weight that any hidden token keeps in its pattern, which is to be exactly 0."""
    batch = _batch(decoder, probing)
    for index, (account, place) in enumerate(zip(accounts, decoder.places, strict=False)):
        here, layer = decoder.seen_from(place), decoder.layers[index]
        rows, attention = batch.to(place), layer.attention
        rotaries = here.rotaries(rows.positions, rows.prompts.width)
        stream = account.entering.to(place, decoder.dtype)
        q, k, _ = layer.project(stream, rotaries, max_rows=len(stream))
        masks, scoring = query_masks(rows, attention.window), attention.scoring
        scores = query_scores(rows.at_query(q), rows.prompts.heads(k), scoring=scoring, visible=masks.visible)
        masked = torch.where(rows.hidden, -torch.inf, rearrange(scores, "b kv g k -> b kv 1 g k"))
        pattern = softmax(masked, scoring.sink(attention.heads.num_kv_heads, "kv 1 g 1"))
        yield (pattern * rows.hidden).amax()


def _batch(view: View, probing: Probing) -> Batch:
    """The probe, with every token but the last hidden in turn."""
    return make_batch([probing.token_ids], [single_tokens(len(probing.token_ids), probing.all_hidden)], view.device)


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


def _account(readout: Readout, entering: Float[Tensor, "s e"], hidden: int) -> Account:
    update, attn, z = (_pair(site, hidden) for site in readout.sites[:3])
    return Account(entering, on_host(readout.residual), update, attn, z)


def _pair(site: Site, hidden: int) -> Pair:
    rows = site.baseline, site.delta[hidden : hidden + 1]
    vectors = (rearrange(x, "1 (n c) -> n c", n=site.num_vectors) for x in rows)
    return Pair(*map(on_host, vectors))


def on_host(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """A copy in float64 in the machine's memory, where a sum of any dtype is exact enough to compare with."""
    return x.detach().cpu().double()
