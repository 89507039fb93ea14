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
