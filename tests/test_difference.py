"""Carried differences against arbitrary precision: relative accuracy must not depend on how small the difference is."""

import mpmath
import numpy as np
import pytest
import torch

from engine.kernels.activations import SILU, Gate, silu_difference
from engine.kernels.difference import Origins, carried, carry_in_chunks
from engine.kernels.norms import RMSNorm
from engine.kernels.projection import Projection

SIZES = [1e-30, 1e-18, 1e-9, 1e-4, 0.1, 3.0, 40.0, 200.0]
# (dtype, rtol, why)
TOLERANCES = [(torch.float64, 1e-12, "a dozen float64 roundings"), (torch.float32, 2e-5, "a dozen float32 roundings")]


def exact(tensor):
    return [mpmath.mpf(float(value)) for value in tensor.flatten()]


def silu(x):
    return x / (1 + mpmath.exp(-x))


@pytest.fixture(autouse=True)
def many_digits():
    with mpmath.workdps(60):
        yield


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("dtype", "rtol", "why"), TOLERANCES, ids=["float64", "float32"])
def test_silu_difference(size, dtype, rtol, why):
    random = torch.Generator().manual_seed(0)
    x = (torch.randn(1, 200, generator=random, dtype=torch.float64) * 6).to(dtype)
    delta = (torch.randn(1, 200, generator=random, dtype=torch.float64) * size).to(dtype)
    expected = [silu(a + d) - silu(a) for a, d in zip(exact(x), exact(delta), strict=True)]
    # Where the slope of SiLU vanishes two exact terms cancel, so the error is measured against the larger of them.
    slopes = [1 / (1 + mpmath.exp(-(a + d))) for a, d in zip(exact(x), exact(delta), strict=True)]
    scale = [abs(d) * s + abs(e) for d, s, e in zip(exact(delta), slopes, expected, strict=True)]
    for got, want, unit in zip(
        exact(silu_difference(x, torch.nn.functional.silu(x), delta)), expected, scale, strict=True
    ):
        assert abs(got - want) <= rtol * unit + mpmath.mpf(2) ** -140, why


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("dtype", "rtol", "why"), TOLERANCES, ids=["float64", "float32"])
def test_rms_norm_difference(size, dtype, rtol, why):
    random = torch.Generator().manual_seed(1)
    x, delta, weight = (torch.randn(3, 40, generator=random, dtype=torch.float64) * 2).to(dtype)
    delta = delta * size
    norm = RMSNorm(weight, weight.new_tensor(1e-6))
    out = norm.carry(carried(x[None], delta[None], Origins(np.array([0]), x.device)))

    def reference(values):
        scale = 1 / mpmath.sqrt(sum(v * v for v in values) / len(values) + mpmath.mpf(float(norm.eps)))
        return [v * scale * w for v, w in zip(values, exact(weight), strict=True)]

    moved = [a + d for a, d in zip(exact(x), exact(delta), strict=True)]
    expected = [m - b for m, b in zip(reference(moved), reference(exact(x)), strict=True)]
    gap = mpmath.norm([g - e for g, e in zip(exact(out.delta), expected, strict=True)])
    assert gap <= rtol * mpmath.norm(expected), why
    torch.testing.assert_close(out.baseline, norm(x[None]))


@pytest.mark.parametrize("left", [0.0, 1e-30, 1e-6, 1e-3, 0.3])
def test_rms_norm_difference_where_little_is_left(left):
    """Δ takes x nearly to 0, where the scale grows by orders of magnitude."""
    random = torch.Generator().manual_seed(4)
    x, rest, weight = torch.randn(3, 40, generator=random) * 2
    delta = rest * left - x
    out = (
        RMSNorm(weight, weight.new_tensor(1e-6))
        .carry(carried(x[None], delta[None], Origins(np.array([0]), x.device)))
        .delta[0]
    )
    plain = torch.nn.functional.rms_norm
    wide = [plain(values.double(), (40,), weight.double(), 1e-6) for values in (x.double() + delta.double(), x)]
    torch.testing.assert_close(
        out.double(), wide[0] - wide[1], rtol=1e-4, atol=1e-5 * float((wide[0] - wide[1]).abs().max())
    )


def make_rows(*, prompts, variants, channels):
    random = torch.Generator().manual_seed(2)
    origins = Origins(np.repeat(np.arange(prompts) * 3 + 2, variants), torch.device("cpu"))
    baseline = torch.randn(prompts * 3, channels, generator=random, dtype=torch.float64)
    delta = torch.randn(len(origins), channels, generator=random, dtype=torch.float64) * 1e-3
    return carried(baseline, delta, origins)


def test_gated_rows_equal_the_plain_function():
    x = make_rows(prompts=2, variants=4, channels=10)
    out = Gate(SILU).carry(x)

    def plain(rows):
        gate, up = rows.chunk(2, dim=-1)
        return torch.nn.functional.silu(gate) * up

    moved = plain(x.origins.take(x.baseline) + x.delta) - plain(x.origins.take(x.baseline))
    torch.testing.assert_close(out.baseline, plain(x.baseline))
    torch.testing.assert_close(out.delta, moved, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("max_rows", [1, 2, 3, 5, 7, 100])
def test_chunks_change_nothing(max_rows):
    x = make_rows(prompts=3, variants=5, channels=8)
    norm = RMSNorm(torch.linspace(0.5, 2, 8, dtype=torch.float64), torch.tensor(1e-5, dtype=torch.float64))
    whole, cut = norm.carry(x), carry_in_chunks(norm.carry, x, max_rows=max_rows)
    torch.testing.assert_close(cut.rows, whole.rows, rtol=1e-14, atol=0)


def test_bias_reaches_the_baseline_and_cancels_in_the_difference():
    x = make_rows(prompts=1, variants=3, channels=6)
    first, second = torch.randn(4, 6, dtype=torch.float64), torch.randn(5, 6, dtype=torch.float64)
    bias = torch.randn(9, dtype=torch.float64)
    out = Projection((first, second), bias).carry(x)
    weight = torch.cat((first, second))
    torch.testing.assert_close(out.baseline, x.baseline @ weight.T + bias)
    torch.testing.assert_close(out.delta, x.delta @ weight.T)
