"""Named weights -> the parts of a layer, as a family's table says."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.errors import ModelError
from engine.kernels.activations import Activation, Gate
from engine.kernels.experts import Router
from engine.kernels.norms import LayerNorm, Norm, RMSNorm, WholeNorms
from engine.kernels.projection import Projection, joined_bias
from engine.kernels.scores import Scoring
from engine.model.acts import activation, clamped_gate
from engine.model.families import ExpertNames, Family
from engine.model.layer import Attention, Heads, Layer
from engine.model.mlps import MLP, Experts, GatedMLP, PlainMLP


@dataclass(frozen=True)
class Parts:
    """Makes the parts of a decoder; ``weights`` are asked for in the order in which a pass needs them."""

    family: Family
    config: Any
    weights: Mapping[str, Tensor]
    heads: Heads
    scales: Sequence[float]
    eps: Callable[[str], float]
    dtype: torch.dtype

    def layer(self, index: int) -> Layer:
        """The layer of that index. Raises ``ModelError`` for what the family does not have."""
        family, at = self.family, f"{self.family.layers}.{index}."
        return Layer(
            attn_norm=self._norm(at, family.attn_norm),
            attention=self._attention(at, index),
            attn_post_norm=self._norm(at, family.attn_post_norm),
            mlp_norm=self._norm(at, family.mlp_norm),
            mlp=self._experts(at) if family.is_sparse(self.config, index) else self._mlp(at),
            mlp_post_norm=self._norm(at, family.mlp_post_norm),
            multiplier=family.multiplier(self.config),
            parallel=family.parallel(self.config),
        )

    def norm(self, name: str) -> Norm:
        """The norm of that name."""
        rms = self._rms(name)
        if self.family.norm == "layer":
            bias = self.weights.get(f"{name}.bias")
            return LayerNorm(rms, None if bias is None else bias.to(self.dtype))
        return rms

    def positions(self) -> Tensor | None:
        """The learned positions, where there are any."""
        return None if self.family.positions is None else self.weights[f"{self.family.positions}.weight"]

    def is_untied(self) -> bool:
        """Whether there is an unembedding of its own."""
        return f"{self.family.unembedding}.weight" in self.weights

    def linear(self, *names: str, transposed: bool = False) -> Projection:
        """The projections of these names side by side; ``transposed`` ones are stored input first."""
        stored = (self.weights[f"{name}.weight"] for name in names)
        weights = tuple(weight.T if transposed else weight for weight in stored)
        biases = [self.weights.get(f"{name}.bias") for name in names]
        wide = [None if bias is None else bias.to(self.dtype) for bias in biases]
        return Projection(weights, joined_bias(wide, [len(weight) for weight in weights]))

    def _linear(self, at: str, *names: str) -> Projection:
        return self.linear(*(at + name for name in names), transposed=self.family.transposed)

    def _norm(self, at: str, name: str | None) -> Norm | None:
        return None if name is None else self.norm(at + name)

    def _rms(self, name: str) -> RMSNorm:
        weight = self.weights[f"{name}.weight"].to(self.dtype)
        if self.family.norm == "rms plus one":
            weight = 1 + weight
        return RMSNorm(weight, weight.new_tensor(self.eps(name)))

    def _attention(self, at: str, index: int) -> Attention:
        family = self.family
        sinks = None if family.sinks is None else self.weights[at + family.sinks].to(self.dtype)
        return Attention(
            qkv=self._linear(at, *family.qkv),
            output=self._linear(at, family.output),
            heads=self.heads,
            scoring=Scoring(self.scales[index], family.soft_cap(self.config), sinks),
            window=family.window(self.config, index),
            qk_norm=self._qk_norm(at),
            rope=family.rope_of(self.config, index),
            by_head=family.by_head,
        )

    def _qk_norm(self, at: str) -> Norm | None:
        """The norms of queries and keys: one with a weight row per head, or one over all heads of each."""
        family, heads = self.family, self.heads
        if family.query_norm is None or family.key_norm is None:
            return None
        query, key = self._rms(at + family.query_norm), self._rms(at + family.key_norm)
        if query.eps != key.eps:
            raise ModelError(f"the norms of queries and keys in {at}* have different epsilons, which is not supported")
        if family.whole_qk_norm:
            return WholeNorms(query, key, heads.num_heads)
        rows = (query.weight.expand(heads.num_heads, -1), key.weight.expand(heads.num_kv_heads, -1))
        return RMSNorm(torch.cat(rows), query.eps)

    def _act(self) -> Activation:
        return activation(getattr(self.config, self.family.act))

    def _gate(self) -> Gate:
        clamped = self.family.clamped(self.config)
        return Gate(self._act()) if clamped is None else clamped_gate(*clamped)

    def _mlp(self, at: str) -> MLP:
        up, down = self._linear(at, *self.family.gate_up), self._linear(at, self.family.down)
        return GatedMLP(up, down, self._gate()) if self.family.gated else PlainMLP(up, down, self._act())

    def _experts(self, at: str) -> Experts:
        names, config = self.family.experts, self.config
        assert names is not None
        if not 1 <= config.num_experts_per_tok <= config.num_local_experts:
            raise ModelError(
                f"the config gives every token {config.num_experts_per_tok} of {config.num_local_experts} experts; "
                "check num_experts_per_tok"
            )
        router = Router(self.linear(at + names.router), config.num_experts_per_tok, names.renormalised(config))
        stacked = at + names.gate_up in self.weights
        found = self._stacked(at, names) if stacked else self._apart(at, names)
        gate = self._gate()
        return Experts(router, tuple(GatedMLP(gate_up, down, gate) for gate_up, down in found))

    def _apart(self, at: str, names: ExpertNames) -> Iterator[tuple[Projection, Projection]]:
        """The experts of a checkpoint that holds them one by one."""
        assert names.parts is not None
        for expert in range(self.config.num_local_experts):
            gate, up, down = (at + part.format(expert) for part in names.parts)
            yield self.linear(gate, up), self.linear(down)

    def _stacked(self, at: str, names: ExpertNames) -> Iterator[tuple[Projection, Projection]]:
        """The experts of one tensor for all of them."""
        pairs = (self._slices(at + name, names) for name in (names.gate_up, names.down))
        yield from zip(*pairs, strict=True)

    def _slices(self, name: str, names: ExpertNames) -> Iterator[Projection]:
        weights = self.weights[name]
        biases = self.weights[f"{name}_bias"].to(self.dtype) if names.biased else [None] * len(weights)
        for weight, bias in zip(weights, biases, strict=True):
            yield Projection((weight.T if names.transposed else weight,), bias)
