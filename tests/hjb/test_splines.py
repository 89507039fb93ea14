"""Splines on grids: scipy's inside, linear outside."""

import math

import numpy as np
import pytest
import torch
from scipy.interpolate import make_interp_spline

from mfoc.hjb.splines import Grid
from tests.hjb.problems import D

AXES = tuple(torch.linspace(-1.0, 1.5, n, dtype=D) for n in (4, 7, 9))


def points(d, n=50, low=-1.0, high=1.5):
    return low + (high - low) * torch.rand(n, d, dtype=D, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [4, 5, 12])
def test_one_axis_is_scipys_not_a_knot_spline(size):
    axis = torch.linspace(-1.0, 1.5, size, dtype=D)
    values, grid = (3 * axis).sin(), Grid((axis,))
    x = points(1)
    truth = make_interp_spline(axis.numpy(), values.numpy(), k=3, bc_type="not-a-knot")
    found = grid.evaluate(grid.coefficients(values), x)
    torch.testing.assert_close(found, torch.from_numpy(truth(x[:, 0].numpy())), atol=1e-12, rtol=0)


def test_three_axes_are_scipys_splines_one_after_another():
    values = torch.rand(4, 7, 9, dtype=D, generator=torch.Generator().manual_seed(1))
    grid, x = Grid(AXES), points(3, 20)
    truth = []
    for row in x.numpy():
        folded = values.numpy()
        for axis, place in zip(AXES, row, strict=True):
            folded = make_interp_spline(axis.numpy(), folded, k=3, axis=0)(place)
        truth.append(float(folded))
    found = grid.evaluate(grid.coefficients(values), x)
    torch.testing.assert_close(found, torch.tensor(truth, dtype=D), atol=1e-12, rtol=0)


def test_the_gradient_and_the_hessian_are_those_of_the_spline():
    grid = Grid(AXES[1:])
    coefficients = grid.coefficients(torch.rand(7, 9, dtype=D, generator=torch.Generator().manual_seed(1)))
    x = points(2, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: grid.evaluate(coefficients, x), [x])
    assert torch.autograd.gradgradcheck(lambda x: grid.evaluate(coefficients, x), [x])


@pytest.mark.parametrize(("kind", "order"), [("cubic", 4), ("linear", 2)])
def test_the_order(kind, order):
    errors = []
    for n in (17, 33):
        grid = Grid((torch.linspace(-1.0, 1.5, n, dtype=D),) * 2, kind)
        x = points(2, 400)
        values = (grid.points() * torch.tensor([2.0, 1.0], dtype=D)).sum(1).exp().view(grid.shape)
        errors.append(float((grid.evaluate(grid.coefficients(values), x) - (2 * x[:, 0] + x[:, 1]).exp()).abs().max()))
    assert math.log2(errors[0] / errors[1]) > order - 0.4


@pytest.mark.parametrize("kind", ["cubic", "linear"])
def test_beyond_the_grid_it_goes_on_linearly(kind):
    axis = torch.linspace(0.0, 1.0, 6, dtype=D)
    grid = Grid((axis,), kind)
    coefficients = grid.coefficients(axis.exp())
    edge, far = torch.tensor([[0.0], [1.0]], dtype=D, requires_grad=True), torch.tensor([[-2.0], [3.0]], dtype=D)
    value = grid.evaluate(coefficients, edge)
    (slope,) = torch.autograd.grad(value.sum(), [edge])
    expected = value + slope[:, 0] * torch.tensor([-2.0, 2.0], dtype=D)
    torch.testing.assert_close(grid.evaluate(coefficients, far), expected)
    assert grid.inside(torch.cat([edge.detach(), far])).tolist() == [True, True, False, False]


def test_points_are_numbered_as_the_nearest():
    grid = Grid(AXES)
    np.testing.assert_array_equal(grid.nearest(grid.points() + 1e-3), np.arange(grid.size))


def test_single_precision_stays_so():
    grid = Grid((torch.linspace(0, 1, 8),))
    found = grid.evaluate(grid.coefficients(grid.axes[0] ** 3), torch.tensor([[0.3]]))
    assert found.dtype == torch.float32
    assert abs(float(found) - 0.027) < 1e-6
