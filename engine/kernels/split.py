"""Float32 rows times bfloat16 weights, to float32's accuracy, by matrix units that multiply bfloat16 alone.

bfloat16 has 8 significant bits of float32's 24, and the same exponents. So a float32 number is the sum of three
bfloat16 numbers, each the rounding of what the ones before it leave over, and weights that were stored in bfloat16 are
exact as they are. The terms of all rows go through one product, which reads the weight once, at half the bytes.

Axes: ``t`` term (smallest first), ``n`` row, ``c`` input channel, ``o`` output channel.
"""

from functools import cache

import torch
import torch.nn.functional as F  # noqa: N812
from einops import rearrange, reduce
from jaxtyping import BFloat16, Float32
from torch import Tensor

TERMS = 3
"""Relative error of a product against float64: 1.7e-3 with one term, 2.4e-6 with two, 1e-7 with three, where a float32
product has 2.5e-7."""
FIRST_WITH_UNITS = (8, 0)
"""Compute capability from which a CUDA device has matrix units for bfloat16."""


def bfloat16_terms(rows: Float32[Tensor, "n c"], *, count: int = TERMS) -> BFloat16[Tensor, "t n c"]:
    """The rows as a sum of ``count`` bfloat16 rows; what each leaves over is exact in float32.

    Three hold every bit of numbers from 1e-33 on; of smaller ones, the parts below 1e-40, where bfloat16 ends, are
    lost. Numbers beyond bfloat16's largest, 3.39e38, give NaN.
    """
    terms = rows.new_empty(count, *rows.shape, dtype=torch.bfloat16)
    largest_first = terms.unbind()[::-1]
    largest_first[0].copy_(rows)
    left = rows
    for i in range(1, count):
        if i > 1:
            left = left - largest_first[i - 2]
        torch.sub(left, largest_first[i - 1], out=largest_first[i])
    return terms


def product_of_terms(terms: BFloat16[Tensor, "t n c"], weight: BFloat16[Tensor, "o c"]) -> Float32[Tensor, "n o"]:
    """The sum of the terms times the transposed weight, in one product; the smallest terms are added first."""
    products = _wide_product(rearrange(terms, "t n c -> (t n) c"), weight)
    return reduce(products, "(t n) o -> n o", "sum", t=len(terms))


def splits(device: torch.device, *, stored: torch.dtype | None, asked: torch.dtype) -> bool:
    """Whether weights ``stored`` in one dtype, for answers ``asked`` in another, are best kept as they are stored and
    multiplied by the terms of the rows: from bfloat16 to float32, on a device with matrix units for bfloat16.
    """
    wanted = stored == torch.bfloat16 and asked == torch.float32
    return wanted and device.type == "cuda" and _has_units(device) and _has_kernel(device)


def _wide_product(rows: BFloat16[Tensor, "n c"], weight: BFloat16[Tensor, "o c"]) -> Float32[Tensor, "n o"]:
    """The product with sums and result in float32; where no kernel mixes dtypes, of both factors in float32."""
    if _has_kernel(rows.device):
        return torch.mm(rows, weight.T, out_dtype=torch.float32)
    return F.linear(rows.float(), weight.float())


def _has_units(device: torch.device) -> bool:
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= FIRST_WITH_UNITS


@cache
def _has_kernel(device: torch.device) -> bool:
    """Whether this torch multiplies bfloat16 into float32 on the device, found out by doing it."""
    ones = torch.ones(16, 16, dtype=torch.bfloat16, device=device)
    try:
        product = torch.mm(ones, ones.T, out_dtype=torch.float32)
    except (NotImplementedError, RuntimeError, TypeError):
        return False
    return product.dtype == torch.float32 and bool((product == 16).all())
