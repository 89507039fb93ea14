"""Norms over the whole range of a dtype, against sums of squares in exact arithmetic."""

import math
import sys
from fractions import Fraction
from functools import partial

import pytest
import torch

import mfoc
from mfoc import tree
from mfoc.solving.unread import Unread

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128]


def exact(leaves) -> float:
    """The root of the sum of squares, of rational numbers."""
    parts = [part for leaf in leaves for part in (torch.view_as_real(leaf) if leaf.is_complex() else leaf).flatten()]
    square = sum((Fraction(float(part)) ** 2 for part in parts), Fraction(0))
    scale = Fraction(2) ** 2400  # a whole number, whose root is exact to far more digits than are compared
    root = Fraction(math.isqrt(int(square * scale)), 2**1200)
    return float(root) if root <= Fraction(sys.float_info.max) else math.inf


def drawn(dtype, size, n, seed=0):
    """Numbers of about a size, of either sign."""
    real = torch.float64 if dtype in (torch.float64, torch.complex128) else torch.float32
    generator = torch.Generator().manual_seed(seed)
    numbers = (torch.rand(2, n, generator=generator, dtype=torch.float64) + 0.5) * size
    return (torch.complex(*numbers) if dtype.is_complex else numbers[0].to(real)).to(dtype)


def sizes(dtype):
    """From the least number that the dtype holds to nearly the largest."""
    limits = torch.finfo(dtype)
    low, high = math.log10(limits.smallest_normal), math.log10(limits.max)
    return [10 ** (low + (high - low) * k / 12) for k in range(12)] + [limits.max / 8]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [1, 7, 130])
def test_a_norm_is_right_whatever_the_size(dtype, n):
    for size in sizes(dtype):
        leaf = drawn(dtype, size, n)
        held = [leaf, drawn(dtype, size, 3, seed=1)]
        single = 1e-5 if dtype in (torch.float32, torch.complex64) else 1e-12
        assert float(tree.norm(leaf)) == pytest.approx(exact([leaf]), rel=single)
        assert float(tree.norm(held)) == pytest.approx(exact(held), rel=single)
        assert math.hypot(*tree.floats(tree.norms(held))) == pytest.approx(exact(held), rel=single)
        assert float(tree.length(leaf, wide=True)) == pytest.approx(exact([leaf]), rel=single)
        rows = tree.length(torch.stack([leaf, 0 * leaf]), 1).double()
        assert rows[1] == 0
        if exact([leaf]) < torch.finfo(dtype).max:
            assert float(rows[0]) == pytest.approx(exact([leaf]), rel=10 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zero_infinity_and_nan_are_what_they_are(dtype):
    leaf = torch.ones(3, dtype=dtype)
    assert float(tree.norm([0 * leaf])) == 0
    assert tree.norm([]) == 0
    assert float(tree.norm(torch.tensor([1.0, math.inf]).to(dtype))) == math.inf
    assert math.isnan(float(tree.norm(torch.tensor([1.0, math.nan]).to(dtype))))
    assert float(tree.length(torch.ones(0, dtype=dtype))) == 0


@pytest.mark.parametrize("few", [True, False])
@pytest.mark.parametrize("size", [1e-40, 1e-24, 1.0, 1e20, 1e37])
def test_residuals_that_are_read_later_are_right(size, few):
    slopes = [drawn(torch.float32, size, 5 if few else 20_000), drawn(torch.float32, size, 3, seed=1)]
    unread, records = Unread(), [{}, {}]
    for record in records:
        unread.add(record, torch.tensor(1.0), slopes)
    unread.own()
    assert unread.read() is None
    for record in records:
        assert record["residual"] == pytest.approx(math.sqrt(sum(float(s.double().square().sum()) for s in slopes)))


def problem(scale, dtype=torch.float32, **more):
    """The minimum of scale |u - 1|^2 / 2, where the particles do not move."""
    return mfoc.Problem(
        lambda t, x, u, z: x + 0 * u,
        lambda x, z: 0 * x[:, 0],
        [torch.full((4,), 3.0, dtype=dtype)],
        running_cost=lambda t, x, u, z: (scale / 2 * (u - 1).square().sum()).expand(len(x)),
        **more,
    )


CLOUD = torch.zeros(3, 4)
SGD = partial(torch.optim.SGD, lr=0.1)


@pytest.mark.parametrize("scale", [1e-24, 1e18])
@pytest.mark.parametrize("tol", [None, 1e-30])
@pytest.mark.parametrize("bounds", [None, mfoc.Box(-9.0, 9.0)])
def test_a_small_or_large_gradient_is_neither_converged_nor_infinite(scale, tol, bounds):
    made = problem(scale, bounds=bounds)
    found = mfoc.solve(made, mfoc.Gradient(partial(torch.optim.SGD, lr=0.1 / scale)), CLOUD, steps=3, tol=tol)
    assert found.status is mfoc.Status.MAX_STEPS
    assert found.history[0]["residual"] == pytest.approx(4 * scale, rel=1e-5)
    assert found.residual == pytest.approx(4 * scale * 0.9**3, rel=1e-4)


@pytest.mark.parametrize("scale", [1e-30, 1e-24, 1.0, 1e15])
@pytest.mark.parametrize("bounds", [None, mfoc.Box(-9.0, 9.0)])
def test_newton_goes_to_the_minimum_whatever_the_scale(scale, bounds):
    found = mfoc.solve(problem(scale, bounds=bounds), mfoc.NewtonCG(), CLOUD, steps=4)
    torch.testing.assert_close(found.controls[0], torch.ones(4), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("scale", [1e-24, 1.0, 1e15])
def test_a_certificate_has_the_residual_of_the_gradient(scale):
    found = mfoc.certify(problem(scale), problem(scale), CLOUD, lanczos=2, groups=2, starts=1)
    assert found.stages[0].residual.value == pytest.approx(4 * scale, rel=1e-4)
    assert found.stages[0].curvature.value == pytest.approx(scale, rel=1e-2)
