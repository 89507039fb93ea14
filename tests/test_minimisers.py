"""Minimisers of many functions at once, one a row."""

import numpy as np
import pytest
import scipy.optimize
import torch

from mfoc.minimisers import LBFGS, Descent
from tests.problems import D, distance, normal


def quadratics(rows, n, seed=0):
    root = normal(rows, n, n, seed=seed)
    a = root @ root.mT + torch.logspace(-1, 1, rows, dtype=D)[:, None, None] * torch.eye(n, dtype=D)
    b = normal(rows, n, seed=seed + 1)

    def evaluate(x):
        ax = torch.einsum("gij,gj->gi", a, x)
        return (x * ax).sum(1) / 2 - (b * x).sum(1), ax - b

    return evaluate, torch.linalg.solve(a, b)


@pytest.mark.parametrize("n", [1, 2, 8])
def test_lbfgs_solves_convex_quadratics_row_by_row(n):
    evaluate, solution = quadratics(6, n)
    found = LBFGS(steps=200, tol=1e-10).minimise(evaluate, torch.zeros(6, n, dtype=D))
    assert distance(found.point, solution) < 1e-8
    torch.testing.assert_close(found.value, evaluate(solution)[0], rtol=1e-12, atol=1e-12)
    assert not found.unbounded.any()


def rosenbrock(x):
    a, b = x[:, :-1], x[:, 1:]
    value = (100 * (b - a.square()).square() + (1 - a).square()).sum(1)
    slope = torch.zeros_like(x)
    slope[:, :-1] += -400 * a * (b - a.square()) - 2 * (1 - a)
    slope[:, 1:] += 200 * (b - a.square())
    return value, slope


def test_lbfgs_agrees_with_scipy_on_rosenbrock():
    start = normal(5, 4, seed=3)
    found = LBFGS(steps=300, tol=1e-9).minimise(rosenbrock, start)
    for row, x0 in zip(found.point, start, strict=True):

        def function(x):
            value, slope = rosenbrock(torch.from_numpy(x)[None])
            return float(value), slope[0].numpy()

        theirs = scipy.optimize.minimize(
            function, x0.numpy(), jac=True, method="L-BFGS-B", options={"maxiter": 2000, "ftol": 1e-16, "gtol": 1e-10}
        )
        np.testing.assert_allclose(row.numpy(), theirs.x, atol=1e-6)
    assert found.evaluations < 600


def test_lbfgs_rows_do_not_influence_each_other():
    start = normal(4, 3, seed=5) * torch.tensor([[1.0], [3.0], [0.1], [0.0]], dtype=D)
    start[3] = 1.0  # starts at the minimum
    for steps in (1, 3, 10, 50):
        together = LBFGS(steps=steps).minimise(rosenbrock, start)
        for g in range(4):
            alone = LBFGS(steps=steps).minimise(rosenbrock, start[g : g + 1])
            assert torch.equal(alone.point[0], together.point[g])
            assert torch.equal(alone.value[0], together.value[g])


def test_lbfgs_flags_unbounded_and_survives_nonfinite_rows():
    def evaluate(x):
        value = torch.stack(
            [x[0].sum(), (x[1] - 2).square().sum(), (x[2] - 3 * x[2].log()).sum(), x[3].sum() * torch.nan]
        )
        slope = torch.stack([torch.ones_like(x[0]), 2 * (x[1] - 2), 1 - 3 / x[2], torch.full_like(x[3], torch.nan)])
        return value, slope

    start = torch.ones(4, 2, dtype=D)
    found = LBFGS(steps=40).minimise(evaluate, start)
    assert found.unbounded.tolist() == [True, False, False, False]
    torch.testing.assert_close(found.point[1:3], torch.tensor([[2.0, 2.0], [3.0, 3.0]], dtype=D), rtol=1e-6, atol=1e-6)
    assert torch.equal(found.point[3], start[3])
    assert found.point[:3].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lbfgs_never_raises_the_value(dtype):
    start = (3 * normal(6, 4, seed=2)).to(dtype)
    before = rosenbrock(start)[0]
    for steps in (1, 2, 5, 20):
        after = LBFGS(steps=steps, trials=4).minimise(rosenbrock, start)
        assert (after.value <= before).all()
        torch.testing.assert_close(after.value, rosenbrock(after.point)[0])
        before = after.value


def test_descent():
    evaluate, _ = quadratics(3, 2)
    x = normal(3, 2, seed=9)
    found = Descent(0.1, steps=2).minimise(evaluate, x)
    once = x - 0.1 * evaluate(x)[1]
    assert torch.equal(found.point, once - 0.1 * evaluate(once)[1])
    assert found.evaluations == 2


def bowls(x):
    """Smooth, not quadratic, curved differently in every direction: sum_k softplus(w_k x_k) - x_k / 3 + x_k^2 / 20."""
    weight = torch.tensor([0.5, 1.0, 3.0, 10.0], dtype=x.dtype)
    value = torch.nn.functional.softplus(weight * x) - x / 3 + x.square() / 20
    return value.sum(1), weight * torch.sigmoid(weight * x) - 1 / 3 + x / 10


def times(scale, evaluate):
    return lambda x: tuple(scale * part for part in evaluate(x))


@pytest.mark.parametrize("exponent", [-100, -40, -3, 1, 40, 100])
@pytest.mark.parametrize("evaluate", [rosenbrock, bowls])
def test_lbfgs_does_not_see_the_scale_of_a_function(evaluate, exponent):
    """To the bit for powers of two, where scaling does not round."""
    start = normal(5, 4, seed=3)
    for steps in (1, 4, 30):
        plain, scaled = (
            LBFGS(steps=steps).minimise(each, start) for each in (evaluate, times(2.0**exponent, evaluate))
        )
        assert torch.equal(plain.point, scaled.point)
        assert torch.equal(plain.value * 2.0**exponent, scaled.value)
        assert plain.evaluations == scaled.evaluations


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-3)])
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e-9, 1e-3, 1e3, 1e9, 1e12, 1e30])
def test_lbfgs_at_any_scale_to_rounding(scale, dtype, tolerance):
    start = normal(5, 4, seed=3).to(dtype)
    plain, scaled = (LBFGS(steps=6).minimise(each, start) for each in (bowls, times(scale, bowls)))
    torch.testing.assert_close(plain.point, scaled.point, rtol=tolerance, atol=tolerance)


def test_lbfgs_scales_of_rows_do_not_mix():
    scale = torch.logspace(-12, 12, 5, dtype=D)
    start = normal(5, 4, seed=3)

    def evaluate(x):
        value, slope = bowls(x)
        return scale * value, scale[:, None] * slope

    together = LBFGS(steps=50).minimise(evaluate, start)
    torch.testing.assert_close(together.point, LBFGS(steps=50).minimise(bowls, start).point, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("offset", [0.0, 1.0, -1e6])
def test_lbfgs_is_led_by_slopes_where_values_are_all_rounding(offset):
    evaluate, solution = quadratics(6, 4)

    def tiny(x):
        value, slope = evaluate(x)
        return offset + 1e-25 * value, 1e-25 * slope

    found = LBFGS(steps=100, tol=1e-10).minimise(tiny, torch.zeros(6, 4, dtype=D))
    assert distance(found.point, solution) < 1e-8


def flat_bowl(slope, curvature):
    """a x + c x^2 / 2, least at -a / c with value -|a|^2 / (2 c)."""
    return lambda x: ((slope * x).sum(1) + curvature / 2 * x.square().sum(1), slope + curvature * x)


@pytest.mark.parametrize(
    ("dtype", "curvatures"), [(D, [1e3, 1.0, 1e-3, 1e-6, 1e-9]), (torch.float32, [10, 1e-3, 1e-5])]
)
@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_a_minimum_is_found_however_far(scale, dtype, curvatures):
    slope = scale * normal(3, 5, seed=1).to(dtype)
    for curvature in curvatures:
        start = torch.ones(3, 5, dtype=dtype)
        found = LBFGS().minimise(flat_bowl(slope, scale * curvature), start)
        exact = -slope.square().sum(1) / (2 * scale * curvature)
        torch.testing.assert_close(found.value, exact, rtol=50 * torch.finfo(dtype).eps, atol=0)
        assert not found.unbounded.any()
        assert found.evaluations <= 20


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_does_not_bend_is_unbounded_at_any_scale(dtype, scale):
    slope = scale * normal(3, 5, seed=1).to(dtype)
    found = LBFGS().minimise(flat_bowl(slope, 0.0), torch.ones(3, 5, dtype=dtype))
    assert found.unbounded.all()
    concave = LBFGS().minimise(flat_bowl(slope, -scale), torch.ones(3, 5, dtype=dtype))
    assert concave.unbounded.all()


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_a_start_at_the_minimum_ends_at_once(scale):
    evaluate, solution = quadratics(6, 8)
    found = LBFGS(steps=100).minimise(times(scale, evaluate), solution)
    assert found.evaluations <= 3
    assert distance(found.point, solution) < 1e-12
    near = LBFGS(steps=100).minimise(times(scale, evaluate), solution + 1e-6)
    assert distance(near.point, solution) < 1e-10


def test_the_tolerance_is_a_share_of_the_slope_at_the_start():
    evaluate, _ = quadratics(6, 8)
    for start in (torch.zeros(6, 8, dtype=D), 1e3 * normal(6, 8, seed=7)):
        before = evaluate(start)[1].abs().amax(1)
        for tol in (1e-1, 1e-3, 1e-6):
            found = LBFGS(steps=200, tol=tol).minimise(evaluate, start)
            after = evaluate(found.point)[1].abs().amax(1)
            assert (after <= tol * before).all()
            assert (after > 1e-6 * tol * before).any()
