"""One weight matrix, or several that read the same input, applied to all rows in one product each.

Axes: ``n`` row, ``c`` input channel, ``o`` output channel.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F  # noqa: N812
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from engine.kernels.difference import Carried
from engine.kernels.products import multiply, pack, packing_pays
from engine.kernels.split import bfloat16_terms, product_of_terms

_IN_ROWS_DTYPE = ContextVar("_IN_ROWS_DTYPE", default=False)


@contextmanager
def widened_products() -> Iterator[None]:
    """While it lasts, products of this thread are computed in the dtype of their rows, however narrow the weights are:
    what a narrow model would give if nothing but its weights were rounded.
    """
    before = _IN_ROWS_DTYPE.set(True)
    try:
        yield
    finally:
        _IN_ROWS_DTYPE.reset(before)


@dataclass(slots=True)
class Projection:
    """Weights ``o c`` laid side by side along ``o``, with an optional bias over all of them.

    The product is computed in the weights' dtype and returned in the rows' dtype: a bfloat16 checkpoint is multiplied
    in bfloat16, while everything between two products stays in float32. With ``split``, float32 rows are multiplied by
    bfloat16 weights to float32's accuracy.
    """

    weights: tuple[Float[Tensor, "_ c"], ...]
    bias: Float[Tensor, " o"] | None = None
    split: bool = False
    dtype: torch.dtype = field(init=False)

    def __post_init__(self) -> None:
        self.dtype = self.weights[0].dtype
        assert not self.split or self.dtype == torch.bfloat16

    def __call__(self, rows: Float[Tensor, "n c"]) -> Float[Tensor, "n o"]:
        product = self.product(rows)
        return product if self.bias is None else product.add_(self.bias)

    def carry(self, x: Carried) -> Carried:
        """W(x + Δ) + bias - (Wx + bias) = WΔ: the difference passes through the same matrix, without the bias."""
        product = self.product(x.rows)
        if self.bias is not None:
            product[: x.num_baseline] += self.bias
        return x.with_rows(product)

    def product(self, rows: Float[Tensor, "n c"]) -> Float[Tensor, "n o"]:
        """The rows times every weight, without bias. float16 has too few exponents for small differences: there each
        row is scaled to its largest channel and back.
        """
        if self.dtype == torch.float16:
            largest = rows.abs().amax(-1, keepdim=True).clamp_(min=torch.finfo(rows.dtype).tiny)
            return self._product(rows / largest).mul_(largest)
        return self._product(rows)

    def _product(self, rows: Float[Tensor, "n c"]) -> Float[Tensor, "n o"]:
        if _IN_ROWS_DTYPE.get() and not self.split:
            parts = [multiply(rows, _dense(weight).to(rows.dtype)) for weight in self.weights]
        elif self.split:
            terms = bfloat16_terms(rows)
            parts = [product_of_terms(terms, weight) for weight in self.weights]
        else:
            narrow = rows if rows.dtype == self.dtype else rows.to(self.dtype)
            parts = [multiply(narrow, weight) for weight in self.weights]
        product = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return product if product.dtype == rows.dtype else product.to(rows.dtype)

    def wide_product(self, rows: Float[Tensor, "n c"]) -> Float[Tensor, "n o"]:
        """The same in float64."""
        return torch.cat([F.linear(rows.double(), _dense(weight).double()) for weight in self.weights], dim=1)

    @property
    def device(self) -> torch.device:
        return self.weights[0].device

    @property
    def num_cells(self) -> int:
        return sum(weight.numel() for weight in self.weights)

    def shares(self, rows: Float[Tensor, "n c"], num_parts: int) -> Float[Tensor, "n po"]:
        """What each of ``num_parts`` equal parts of the input channels (heads) adds to the product, side by side."""
        (weight,) = self.weights
        dense = _dense(weight).to(rows.dtype)
        parts = rearrange(rows, "n (p c) -> p n c", p=num_parts) @ rearrange(dense, "o (p c) -> p c o", p=num_parts)
        return rearrange(parts, "p n o -> n (p o)")

    def join(self) -> None:
        """Replace the weights by one matrix, so that one product does for all of them."""
        if len(self.weights) > 1:
            self.weights = (torch.cat(self.weights),)

    def pack(self, scratch: dict[torch.Size, Tensor]) -> None:
        """Replace the weights by one matrix in the kernel's own order, where that is faster.

        ``scratch`` keeps the memory in which weights are laid side by side, for the next layer's of the same shape.
        """
        if packing_pays(self.weights[0]):
            shape = torch.Size((sum(map(len, self.weights)), self.weights[0].shape[1]))
            joined = self.weights[0]
            if len(self.weights) > 1:
                joined = torch.cat(self.weights, out=scratch.setdefault(shape, joined.new_empty(shape)))
            self.weights = (pack(joined),)


def _dense(weight: Float[Tensor, "o c"]) -> Float[Tensor, "o c"]:
    """The weight in the usual order."""
    return weight.to_dense() if weight.is_mkldnn else weight


def joined_bias(biases: Sequence[Float[Tensor, " _"] | None], widths: Sequence[int]) -> Float[Tensor, " o"] | None:
    """The biases of projections laid side by side, 0 where one has none; None when none has one."""
    present = next((bias for bias in biases if bias is not None), None)
    if present is None:
        return None
    return torch.cat([present.new_zeros(w) if b is None else b for b, w in zip(biases, widths, strict=True)])
