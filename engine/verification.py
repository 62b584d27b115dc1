"""A second opinion on single cells: the same knockout through the unmodified layer of transformers.

The reference takes the stream that enters the layer from transformers' own forward, copies the layer to float64 and
runs it twice, with and without a column of -inf in its 4-D mask. It shares no code with the engine.
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from engine.checks.tolerances import TOLERANCES, Tolerance
from engine.experiment import Impact
from engine.model.adoption import family_of
from engine.model.families import Family
from engine.text.knockouts import select

FLOAT64_RESOLUTION = 1e-14
"""Share of the baseline vector below which a difference of two float64 vectors is rounding alone."""


@dataclass(frozen=True)
class CellCheck:
    """One layer and masked token, measured twice; distances are (L2, cosine) for Full, Attn and every head."""

    layer: int
    token: int
    engine: Float[Tensor, "site 2"]
    reference: Float[Tensor, "site 2"]
    baseline_norms: Float[Tensor, " site"]
    tolerance: Tolerance

    @property
    def relative_errors(self) -> Float[Tensor, "site 2"]:
        """|engine - reference| / reference; 0 where the reference cannot resolve the gap or the cell is undefined."""
        gap = (self.engine - self.reference).abs()
        resolved = gap > FLOAT64_RESOLUTION * torch.stack((self.baseline_norms, self.baseline_norms**0), dim=-1)
        return torch.where(resolved, gap / self.reference.abs(), 0.0)

    @property
    def agrees(self) -> bool:
        """True when every distance lies within the tolerance and both call the same cells undefined."""
        undefined = self.engine.isnan()
        within = (self.engine - self.reference).abs() <= self._allowed()
        return bool((torch.where(undefined, self.reference.isnan(), within)).all())

    @property
    def bites(self) -> bool:
        """True when the engine sees the mask move every vector that it moves in the reference."""
        moved = self.reference[:, 0] > self._allowed()[:, 0]
        return bool(moved.any() and (self.engine[moved, 0] > 0).all())

    def _allowed(self) -> Float[Tensor, "site 2"]:
        """L2: rtol·d + ε·|b|. Cosine: 1 - cos = θ²/2 to first order, and ε moves the angle θ by ε."""
        l2, cosine = self.reference.unbind(-1)
        angle = (2 * cosine.clamp(min=0)).sqrt()
        epsilon = self.tolerance.resolution
        slack = torch.stack((epsilon * self.baseline_norms, epsilon * (angle + epsilon)), dim=-1)
        return self.tolerance.relative * torch.stack((l2, cosine), dim=-1) + slack


def check_cell(model: nn.Module, impact: Impact, *, layer: int, token: int) -> CellCheck:
    """Hold one cell of a measured table against the unmodified layer of ``model``, with which it was measured.

    Raises ``SelectionError`` when the table has no such layer or token.
    """
    (layer,), (token,) = (
        select([layer], len(impact.layers), what="layer"),
        select([token], len(impact.tokens), what="token"),
    )
    family = family_of(model)
    entering = stream_entering(model, impact.prompt.token_ids, layer)
    reference = ReferenceLayer(model, family, layer)
    baseline = reference.sites(entering, hidden=None)
    masked = reference.sites(entering, hidden=token)
    measured = [plain_distances(b, m) for b, m in zip(baseline, masked, strict=True)]
    weight = model.get_parameter(f"{family.embedding}.weight")
    return CellCheck(
        layer=layer,
        token=token,
        engine=torch.from_numpy(impact.distances[layer, token]).double(),
        reference=torch.cat(measured),
        baseline_norms=torch.cat([b.norm(dim=-1) for b in baseline]),
        tolerance=TOLERANCES[weight.dtype],
    )


def plain_distances(baseline: Float[Tensor, "h c"], masked: Float[Tensor, "h c"]) -> Float[Tensor, "h 2"]:
    """(|m - b|, 1 - cos(b, m)) as the definitions say; NaN where the masked vector is undefined."""
    l2 = (masked - baseline).norm(dim=-1)
    cosine = (masked * baseline).sum(-1) / (masked.norm(dim=-1) * baseline.norm(dim=-1))
    return torch.stack((l2, 1 - cosine), dim=-1)


@torch.inference_mode()
def stream_entering(model: Any, token_ids: tuple[int, ...], layer: int) -> Float[Tensor, "1 s e"]:
    """The residual stream that enters ``layer`` in transformers' own forward."""
    ids = torch.tensor([token_ids], device=model.device)
    return model(ids, output_hidden_states=True, use_cache=False, logits_to_keep=1).hidden_states[layer].cpu()


class ReferenceLayer:
    """A float64 copy of one unmodified layer on the CPU, read at the final position by hooks on its projection and on
    the norm behind it, if there is one.
    """

    def __init__(self, model: Any, family: Family, layer: int) -> None:
        config = model.config
        self._layer = deepcopy(model.get_submodule(family.layers)[layer]).cpu().double()
        self._rotary = None if family.rotary is None else deepcopy(model.get_submodule(family.rotary)).cpu()
        rope = family.rope_of(config, layer)
        self._kind = {"layer_type": rope} if rope and rope in config.rope_parameters else {}
        self._window = family.window(config, layer)
        self._num_heads = config.num_attention_heads
        self._multiplier = family.multiplier(config)
        self._output = self._layer.get_submodule(family.output)
        self._behind = self._layer.get_submodule(family.attn_post_norm or family.output)

    @torch.inference_mode()
    def sites(
        self, entering: Float[Tensor, "1 s e"], *, hidden: int | None
    ) -> tuple[Float[Tensor, "1 e"], Float[Tensor, "1 e"], Float[Tensor, "h d"]]:
        """Full, Attn and the heads' outputs at the final position, with key ``hidden`` cut from every query."""
        read: list[Tensor] = []
        hooks = (
            self._output.register_forward_hook(lambda _, inputs, out: read.append(inputs[0])),
            self._behind.register_forward_hook(lambda _, inputs, out: read.append(out)),
        )
        stream = entering.double()
        positions = torch.arange(stream.shape[1], device=stream.device)[None]
        tables = self._tables(entering, positions)
        mask = self._mask(stream, hidden)
        leaving = self._layer(stream, attention_mask=mask, position_embeddings=tables, position_ids=positions)
        for hook in hooks:
            hook.remove()
        z, attn_out = read[0], read[1] * self._multiplier
        return (leaving - stream)[:, -1], attn_out[:, -1], rearrange(z[0, -1], "(h d) -> h d", h=self._num_heads)

    def _tables(self, entering: Float[Tensor, "1 s e"], positions: Tensor) -> tuple[Tensor, ...]:
        """The rotary tables as transformers makes them; none where the family has none."""
        if self._rotary is None:
            return ()
        return tuple(table.double() for table in self._rotary(entering, positions, **self._kind))

    def _mask(self, stream: Float[Tensor, "1 s e"], hidden: int | None) -> Float[Tensor, "1 1 s s"]:
        """0 where a query may attend, -inf elsewhere: causal, sliding window, and the whole column ``hidden``."""
        s = stream.shape[1]
        mask = stream.new_full((s, s), -torch.inf).triu(1)
        if self._window is not None:
            mask += stream.new_full((s, s), -torch.inf).tril(-self._window)
        if hidden is not None:
            mask[:, hidden] = -torch.inf
        return rearrange(mask, "s k -> 1 1 s k")
