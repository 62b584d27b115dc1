"""Transformers' own account: its forward of the probe, in which every layer is watched and called a second time.

Hooks watch; they are taken away again. Every layer is given the stream that the engine had there, so that each is
compared on its own and the first that differs is the one that is wrong.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from engine.checks.account import Account, Pair, Probing, on_host
from engine.model.families import Family
from engine.model.visits import forward, mapped, stream_of

Stream = Float[Tensor, "s e"]


def witness(
    model: Any,
    layers: Sequence[nn.Module],
    probing: Probing,
    *,
    given: Sequence[Stream],
    taps: "Taps | None" = None,
    token_ids: Sequence[int] | None = None,
) -> tuple[list[Account], Float[Tensor, " c"]]:
    """The account of the first ``layers`` of a model that is ready to run, and its logits after the last token.

    ``given`` streams take the place of those that enter, layer by layer; ``token_ids`` the place of the probe's, where
    the model has a vocabulary of its own. In the caller's no_grad.
    """
    watching = _Watching(probing, given, taps)
    ids = torch.tensor(token_ids or probing.token_ids, device=model.device)
    with watching.hooked(layers):
        logits = forward(model, ids).logits
    return watching.found, on_host(logits[0, -1])


@dataclass(frozen=True)
class Taps:
    """Where a family's layers show their heads' outputs, and what attention adds to the stream, as a table says."""

    output: str
    behind: str
    """The module whose output is added."""
    multiplier: float
    num_heads: int

    @classmethod
    def of(cls, family: Family, config: Any) -> "Taps":
        """The places in layers of that family."""
        behind = family.attn_post_norm or family.output
        return cls(family.output, behind, family.multiplier(config), config.num_attention_heads)


@dataclass
class _Watching:
    """What the hooks of one forward note."""

    probing: Probing
    given: Sequence[Stream]
    taps: Taps | None
    found: list[Account] = field(default_factory=list)
    arrived: Stream | None = None
    seen: dict[str, Tensor] = field(default_factory=dict)
    is_again: bool = False

    @contextmanager
    def hooked(self, layers: Sequence[nn.Module]) -> Iterator[None]:
        """While it lasts, the layers are watched."""
        with ExitStack() as undo:
            for layer in dict.fromkeys(layers):
                undo.callback(layer.register_forward_pre_hook(self._enter, with_kwargs=True).remove)
                undo.callback(layer.register_forward_hook(self._leave, with_kwargs=True).remove)
                if self.taps is not None:
                    output, behind = (layer.get_submodule(name) for name in (self.taps.output, self.taps.behind))
                    undo.callback(output.register_forward_pre_hook(self._note_z).remove)
                    undo.callback(behind.register_forward_hook(self._note_attn).remove)
            yield

    def _enter(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Note the stream that arrives, and put the given one in its place."""
        index = len(self.found)
        if self.is_again or index >= len(self.given):
            return None
        stream = args[0] if args else kwargs["hidden_states"]
        self.arrived = on_host(stream[0])
        replaced = self.given[index][None].to(stream.device, stream.dtype)
        return ((replaced, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": replaced})

    def _leave(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Note what left, and call the layer again with the token hidden by the mask."""
        if self.is_again or len(self.found) >= len(self.given):
            return
        baseline, seen = on_host(stream_of(output)[0]), dict(self.seen)
        self.is_again = True
        try:
            args, kwargs = mapped((args, kwargs), self._cut)
            masked = on_host(stream_of(layer(*args, **kwargs))[0, -1:])
        finally:
            self.is_again = False
        assert self.arrived is not None
        entering = on_host(self.given[len(self.found)])
        update = Pair(baseline[-1:] - entering[-1:], masked - baseline[-1:])
        attn, z = (_pair(seen.get(name), self.seen.get(name)) for name in ("attn", "z"))
        routed = any("expert" in name for name, _ in layer.named_modules())
        self.found.append(Account(self.arrived, baseline, update, attn, z, routed))

    def _cut(self, x: Tensor) -> Tensor:
        """A mask (1, 1, query, key) that hides the token from every query; any other tensor as it is."""
        length = len(self.probing.token_ids)
        if x.shape[-3:] != (1, length, length) or x.ndim != 4:
            return x
        column = torch.arange(length, device=x.device) == self.probing.hidden
        return x & ~column if x.dtype == torch.bool else x.masked_fill(column, -torch.inf)

    def _note_z(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert self.taps is not None
        self.seen["z"] = on_host(rearrange(inputs[0][0, -1], "(h d) -> h d", h=self.taps.num_heads))

    def _note_attn(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert self.taps is not None
        self.seen["attn"] = on_host(output[0, -1:]) * self.taps.multiplier


def _pair(baseline: Tensor | None, masked: Tensor | None) -> Pair | None:
    return None if baseline is None or masked is None else Pair(baseline, masked - baseline)
