"""Transformers' own account: its forward of the probe and a copy in which a token is hidden, watched layer by layer.

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
from engine.checks.masking import telling_masks, told_by
from engine.checks.tolerances import UNSETTLED
from engine.model.families import Family
from engine.model.visits import forward, mapped

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
    with telling_masks(), watching.hooked(layers):
        logits = forward(model, ids, copies=2).logits
    return watching.found, on_host(logits[0, -1])


@dataclass(frozen=True)
class Taps:
    """Where a family's layers show their heads' outputs, and what attention adds to the stream, as a table says."""

    output: str
    behind: str
    """The module whose output is added."""
    multiplier: float
    num_heads: int
    router: str | None = None
    """The module that chooses experts, in the layers that have one."""

    @classmethod
    def of(cls, family: Family, config: Any) -> "Taps":
        """The places in layers of that family."""
        behind = family.attn_post_norm or family.output
        router = None if family.experts is None else family.experts.router
        return cls(family.output, behind, family.multiplier(config), config.num_attention_heads, router)


@dataclass
class _Watching:
    """What the hooks of one forward note. Of two copies of the probe the second has the token hidden."""

    probing: Probing
    given: Sequence[Stream]
    taps: Taps | None
    found: list[Account] = field(default_factory=list)
    arrived: Stream | None = None
    seen: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def hooked(self, layers: Sequence[nn.Module]) -> Iterator[None]:
        """While it lasts, the layers are watched."""
        with ExitStack() as undo:
            for layer in dict.fromkeys(layers):
                undo.callback(layer.register_forward_pre_hook(self._enter, with_kwargs=True).remove)
                undo.callback(layer.register_forward_hook(self._leave).remove)
                if self.taps is not None:
                    output, behind = (layer.get_submodule(name) for name in (self.taps.output, self.taps.behind))
                    undo.callback(output.register_forward_pre_hook(self._note_z).remove)
                    undo.callback(behind.register_forward_hook(self._note_attn).remove)
                    for router in self._routers(layer):
                        undo.callback(router.register_forward_hook(self._note_choice).remove)
            yield

    def _enter(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Note the stream that arrives, put the given one in its place in both copies, and hide the token in one."""
        if self._is_over():
            return None
        stream = args[0] if args else kwargs["hidden_states"]
        self.arrived, self.seen = on_host(stream[0]), {}
        both = self.given[len(self.found)].to(stream.device, stream.dtype).expand(2, -1, -1)
        args, kwargs = mapped((args, kwargs), self._cut)
        return ((both, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": both})

    def _leave(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Note what left."""
        if self._is_over():
            return
        assert self.arrived is not None
        baseline, masked = on_host(output if isinstance(output, Tensor) else output[0])
        entering = on_host(self.given[len(self.found)])
        update = Pair(baseline[-1:] - entering[-1:], masked[-1:] - baseline[-1:])
        routed = any("expert" in name for name, _ in layer.named_modules())
        z, attn, settled, sees = (self.seen.get(what) for what in ("z", "attn", "settled", "sees"))
        self.found.append(Account(self.arrived, baseline, update, attn, z, routed, settled, sees))

    def _is_over(self) -> bool:
        return len(self.found) >= len(self.given)

    def _cut(self, x: Tensor) -> Tensor:
        """A mask (copy, 1, query, key), of which the second copy hides the token; any other tensor as it is."""
        length = len(self.probing.token_ids)
        if x.ndim != 4 or x.shape[1:] != (1, length, length):
            return x
        self.seen["sees"] = told_by(x)
        both = x.expand(2, -1, -1, -1).clone()
        both[1, ..., self.probing.hidden(len(self.found))] = False if x.dtype == torch.bool else -torch.inf
        return both

    def _routers(self, layer: nn.Module) -> list[nn.Module]:
        """Those of the layer: one, or none."""
        assert self.taps is not None
        return [module for name, module in layer.named_modules() if name == self.taps.router]

    def _note_choice(self, module: nn.Module, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        """Tokens whose last chosen expert lies well above the first that was left out, in the logits of all."""
        logits, chosen = on_host(output[0]), output[2].shape[-1]
        best = logits.sort(dim=-1, descending=True).values
        margins = (best[:, :-1] - best[:, 1:])[:, chosen - 1 : chosen]  # of no column where all are chosen
        settled = (margins > UNSETTLED * logits.abs().amax(-1, keepdim=True)).all(-1)
        self.seen["settled"] = rearrange(settled, "(copy s) -> copy s", copy=2)

    def _note_z(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert self.taps is not None
        self.seen["z"] = _pair(rearrange(inputs[0][:, -1], "copy (h d) -> copy h d", h=self.taps.num_heads))

    def _note_attn(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert self.taps is not None
        self.seen["attn"] = _pair(output[:, -1:] * self.taps.multiplier)


def _pair(copies: Float[Tensor, "2 n c"]) -> Pair:
    baseline, masked = on_host(copies)
    return Pair(baseline, masked - baseline)
