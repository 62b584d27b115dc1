"""Rows times a weight matrix, by the fastest exact kernel that this machine has.

On a CPU torch multiplies float32 matrices with one library (MKL in most builds) but ships a second, oneDNN, that is
2 to 3 times as fast on processors the first was not written for, and faster still when a weight is packed once into
the order in which its kernel reads it. It is taken on every x86 processor whose torch has it: a choice by the clock
would let a busy machine give other last digits to the same command.

Axes: ``n`` row, ``c`` input channel, ``o`` output channel.
"""

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float
from torch import Tensor

from engine.sharing import Shared

Product = Callable[[Tensor, Tensor], Tensor]
PROBE_ROWS, PROBE_CHANNELS = 16, 256
X86 = ("x86_64", "amd64")
LEAST_ROUNDED, MOST_FILLED, SMALL_CELLS = 32, 128, 1 << 19
"""For a number of rows that is new to it, oneDNN writes a program: half a millisecond, and most of a megabyte that it
keeps. Many prompts bring many such numbers, so rows are filled up with zeros where the weight is small: there the copy
costs less than the program."""
PACKED_FOR_ROWS = 16
"""Row count that a packed weight is laid out for; it serves any other as well."""


def multiply(rows: Float[Tensor, "n c"], weight: Float[Tensor, "o c"]) -> Float[Tensor, "n o"]:
    """The rows times the transposed weight, which may be packed."""
    return _onednn(rows, weight) if weight.is_mkldnn else _product_for(rows)(rows, weight)


def pack(weight: Float[Tensor, "o c"]) -> Float[Tensor, "o c"]:
    """A copy of the weight in the order that the kernel reads; only ``multiply`` understands it."""
    return torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_FOR_ROWS)


def packing_pays(weight: Float[Tensor, "o c"]) -> bool:
    """Whether the weight is not packed yet, and ``multiply`` on this machine is faster when it is."""
    plain = weight.device.type == "cpu" and weight.dtype == torch.float32 and not weight.is_mkldnn
    return plain and _on_cpu() is _onednn


def beats_default(rows: Tensor) -> bool:
    """Whether ``multiply`` has a faster product for such rows than the one that torch's own functions use."""
    return _product_for(rows) is not F.linear


def cpu_product() -> str:
    """The library that multiplies float32 rows on this process's CPU: ``torch`` (its own choice) or ``onednn``."""
    return "onednn" if _on_cpu() is _onednn else "torch"


def _step(num_rows: int) -> int:
    """Few different numbers of rows, each at most an eighth above what is needed, or ``MOST_FILLED`` rows; few rows are
    left as they are.
    """
    return 1 if num_rows <= LEAST_ROUNDED else max(MOST_FILLED, 1 << ((num_rows - 1).bit_length() - 4))


@contextmanager
def keeping_to(product: str | None) -> Iterator[None]:
    """Use the library that ``cpu_product`` named before instead of the faster one: it gives the same digits again.

    A build that lacks it, and None, change nothing.
    """
    before = list(_kept)
    if product == "torch":
        _kept[:] = [F.linear]
    elif product == "onednn" and _onednn_works():
        _kept[:] = [_onednn]
    try:
        yield
    finally:
        _kept[:] = before


_kept: list[Product] = []
"""The product that this process keeps to, if it was told to."""


def _product_for(rows: Tensor) -> Product:
    if rows.device.type == "cpu" and rows.dtype == torch.float32:
        return _on_cpu()
    return F.linear


def _on_cpu() -> Product:
    return _kept[0] if _kept else _fastest_on_cpu()


def _onednn(rows: Float[Tensor, "n c"], weight: Float[Tensor, "o c"]) -> Float[Tensor, "n o"]:
    if not (weight.is_mkldnn or weight.is_contiguous()):
        return F.linear(rows, weight)  # oneDNN falls back to loops, a thousand times as slow
    missing = -len(rows) % _step(len(rows)) if weight.numel() <= SMALL_CELLS else 0
    whole = F.pad(rows, (0, 0, 0, missing)) if missing else rows
    return torch.ops.mkldnn._linear_pointwise(whole, weight, None, "none", [], "")[: len(rows)]


@cache
def _fastest_on_cpu() -> Product:
    """oneDNN's product where it works and was written for the processor, and torch's own elsewhere."""
    return _onednn if platform.machine().lower() in X86 and _onednn_works() else F.linear


@cache
def _onednn_works() -> bool:
    """Whether this build has oneDNN's product, and it gives the numbers of torch's."""
    rows, weight = _probe()
    try:
        return torch.allclose(_onednn(rows, weight), F.linear(rows, weight), rtol=1e-4, atol=1e-3)
    except (AttributeError, NotImplementedError, RuntimeError):
        return False


def _probe() -> tuple[Float[Tensor, "n c"], Float[Tensor, "o c"]]:
    random = torch.Generator("cpu").manual_seed(0)
    rows = torch.randn(PROBE_ROWS, PROBE_CHANNELS, generator=random, device="cpu")
    return rows, torch.randn(PROBE_CHANNELS, PROBE_CHANNELS, generator=random, device="cpu")


@contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Keep products in the dtype of their factors, and sums in float32: no autocast, no TF32 or bfloat16 inside
    float32, and no partial sums rounded to bfloat16.
    """
    with _exact_backends(), torch.autocast(device.type, enabled=False):
        yield


@contextmanager
def _made_exact() -> Iterator[None]:
    backends: tuple[Any, ...] = (torch.backends.mkldnn, torch.backends.cuda)
    rounds_sums = torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
    changed = [(b, b.matmul.fp32_precision) for b in backends if b.matmul.fp32_precision not in ("none", "ieee")]
    for backend, _ in changed:
        backend.matmul.fp32_precision = "ieee"
    if rounds_sums:
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        if rounds_sums:
            torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = True
        for backend, precision in changed:
            inherited = getattr(backend, "fp32_precision", None) == precision
            backend.matmul.fp32_precision = "none" if inherited else precision


_exact_backends = Shared(_made_exact)
