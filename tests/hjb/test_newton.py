"""Many small bounded minimisations at once, against scipy one by one."""

import numpy as np
import torch
from scipy.optimize import minimize as scipy_minimize

from mfoc.hjb.newton import lattice, minimise, minimise_from
from tests.hjb.problems import D

INF = torch.tensor([torch.inf, torch.inf], dtype=D)


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def test_convex_rows_within_bounds_are_scipys():
    roots, linear = draw(40, 2, 2), 3 * draw(40, 2, seed=1)
    matrices = roots @ roots.mT + 0.1 * torch.eye(2, dtype=D)
    low, high = torch.tensor([-0.5, -torch.inf], dtype=D), torch.tensor([1.0, 0.7], dtype=D)

    def objective(rows, u):
        quadratic = torch.einsum("gi,gij,gj->g", u, matrices[rows], u) / 2
        return quadratic + (linear[rows] * u).sum(1) + u.pow(4).sum(1)

    found, value = minimise(objective, torch.zeros(40, 2, dtype=D), low, high)
    assert bool(((found >= low) & (found <= high)).all())
    for row in range(40):
        own = torch.tensor([row])

        def cost(u, own=own):
            return float(objective(own, torch.from_numpy(u)[None]))

        best = scipy_minimize(cost, np.zeros(2), bounds=[(-0.5, 1.0), (None, 0.7)], tol=1e-13)
        assert abs(float(value[row]) - best.fun) < 1e-8
        np.testing.assert_allclose(found[row], best.x, atol=1e-4)


def test_a_saddle_is_left_downhill():
    start = torch.tensor([[1e-3, 0.5]], dtype=D)
    found, value = minimise(lambda rows, u: u[:, 0] ** 4 - u[:, 0] ** 2 + u[:, 1] ** 2, start, -INF, INF)
    torch.testing.assert_close(found, torch.tensor([[0.5**0.5, 0.0]], dtype=D), atol=1e-7, rtol=0)
    assert abs(float(value) + 0.25) < 1e-14


def test_a_linear_function_ends_at_its_bounds():
    slopes = torch.tensor([[1.0], [-2.0]], dtype=D)
    low, high = torch.tensor([-3.0], dtype=D), torch.tensor([4.0], dtype=D)
    starts = [u.expand(2, 1) for u in lattice(torch.zeros(1, dtype=D), low, high)]
    found, _ = minimise_from(lambda rows, u: (slopes[rows] * u).sum(1), starts, low, high)
    assert found.tolist() == [[-3.0], [4.0]]


def test_the_lower_of_several_minima():
    starts = [torch.full((1, 1), u, dtype=D) for u in (-1.0, 1.0)]
    found, _ = minimise_from(lambda rows, u: (u[:, 0] ** 2 - 1) ** 2 - 0.1 * u[:, 0], starts, -INF[:1], INF[:1])
    assert float(found) > 0.9
