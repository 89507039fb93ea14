"""The indirect method against Riccati, a direct method, and a bang-bang control in closed form."""

import math
import sys

import pytest
import torch

import mfoc
from mfoc import hjb
from mfoc.minimisers import LBFGS
from tests.hjb.problems import D

ZERO = torch.zeros(1, dtype=D)
A, B = torch.tensor([[0.0, 1.0], [-1.0, -0.2]], dtype=D), torch.tensor([[0.0], [1.0]], dtype=D)


def sizes(x):
    return x.square().sum(1)


def test_linear_quadratic_is_riccati():
    eye, x0 = torch.eye(2, dtype=D), torch.tensor([1.0, -0.5], dtype=D)
    exact = mfoc.lq.LinearQuadratic.continuous(A, B, eye, 0.5 * eye[:1, :1], eye, T=2.0, steps=20)
    found = hjb.solve_bvp(
        lambda t, x, u, z: x @ A.T + u @ B.T,
        lambda x, z: sizes(x),
        x0,
        ZERO,
        running_cost=lambda t, x, u, z: sizes(x) + 0.5 * u.square().sum(),
        T=2.0,
    )
    path, P = exact.path(x0), exact.riccati().P
    assert found.converged
    assert abs(found.cost - float(path.cost)) < 1e-6
    torch.testing.assert_close(found.costates[0], 2 * P[0] @ x0, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.states[-1], path.states[-1], atol=1e-5, rtol=0)
    torch.testing.assert_close(found.controls[-1], path.controls[-1], atol=1e-5, rtol=0)
    assert "converged" in repr(found)


def pendulum(t, x, u, z):
    """Upright is 0."""
    return torch.stack([x[:, 1], x[:, 0].sin() - 0.1 * x[:, 1] + u[0]], 1)


def fallen(x, z):
    return 10 * (1 - x[:, 0].cos()) + 5 * x[:, 1] ** 2


def effort(t, x, u, z):
    return (u.square().sum() / 2).expand(len(x))


def test_a_pendulum_is_what_a_direct_method_finds():
    """Piecewise-constant controls cost more by O(h^2), from the same extremal."""
    x0 = torch.tensor([2.0, 0.0], dtype=D)
    found = hjb.solve_bvp(pendulum, fallen, x0, ZERO, running_cost=effort, T=2.0)
    assert found.converged
    costs = []
    for stages in (20, 40):
        problem = mfoc.continuous(pendulum, fallen, [ZERO] * stages, running_cost=effort, T=2.0, scheme=mfoc.rk4)

        def evaluate(flat, problem=problem):
            value, slopes = mfoc.evaluate(problem, list(flat[0].unsqueeze(1)), x0[None])
            return value[None], torch.cat(slopes)[None]

        costs.append(float(LBFGS(steps=200).minimise(evaluate, torch.zeros(1, stages, dtype=D)).value))
    assert found.cost < costs[1]
    assert abs(found.cost - (4 * costs[1] - costs[0]) / 3) < 1e-3 * found.cost


def test_bounds_and_a_time_that_is_a_number():
    """dx = c(t) u with |u| <= 1 and cost x_T: u = -1, x_T = x0 - sin(1). math.cos takes no tensor of times."""
    drift, end = lambda t, x, u, z: math.cos(t) * u.expand_as(x), lambda x, z: x[:, 0]
    found = hjb.solve_bvp(drift, end, torch.ones(1), ZERO, bounds=mfoc.Box(-1.0, 1.0))
    assert found.converged
    assert float((found.controls + 1).abs().max()) == 0
    assert abs(found.cost - (1 - math.sin(1))) < 1e-6


def test_a_longer_horizon_is_reached_by_continuation():
    x0, guess = torch.tensor([2.5, 0.0], dtype=D), None
    for T in (1.5, 2.0, 2.5):
        guess = hjb.solve_bvp(pendulum, fallen, x0, ZERO, running_cost=effort, T=T, guess=guess)
        assert guess.converged
    assert guess.times[-1] == 2.5
    torch.testing.assert_close(guess.states[0], x0)
    last = guess.states[-1:].clone().requires_grad_()
    (slope,) = torch.autograd.grad(fallen(last, None).sum(), [last])
    torch.testing.assert_close(guess.costates[-1:], slope, atol=1e-5, rtol=0)


def test_a_mesh_that_is_too_coarse_is_told():
    x0 = torch.tensor([2.5, 0.0], dtype=D)
    found = hjb.solve_bvp(pendulum, fallen, x0, ZERO, running_cost=effort, T=4.0, tol=1e-12, max_nodes=25)
    assert not found.converged
    assert "not converged" in repr(found)


def test_without_scipy_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.integrate", None)
    with pytest.raises(mfoc.MissingExtra, match=r"pip install .*curvlinops-for-pytorch"):
        hjb.solve_bvp(pendulum, fallen, torch.zeros(2), ZERO)


def test_refusals():
    with pytest.raises(mfoc.InvalidValue, match=r"x0 has shape \(1, 2\)"):
        hjb.solve_bvp(pendulum, fallen, torch.zeros(1, 2), ZERO)
    with pytest.raises(mfoc.InvalidValue, match="stage 0"):
        hjb.solve_bvp(pendulum, fallen, torch.zeros(1), ZERO)
    with pytest.raises(mfoc.InvalidType, match="it is called as"):
        hjb.solve_bvp(lambda x, u, z: x, fallen, torch.zeros(2), ZERO)


def test_a_drift_that_is_the_control_alone_is_spread_as_a_scheme_spreads_it():
    """dx = u dt, cost int u^2 + x_T^2 from 1: u = -1/2 and the cost is 1/2."""
    found = mfoc.hjb.solve_bvp(
        lambda t, x, u, z: u,
        lambda x, z: x.square().sum(1),
        torch.ones(1),
        torch.zeros(1),
        running_cost=lambda t, x, u, z: u.square().expand(len(x)),
    )
    assert found.cost == pytest.approx(0.5, abs=1e-6)
    assert float((found.controls + 0.5).abs().max()) < 1e-6
