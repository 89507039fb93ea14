"""Every solver keeps to bounds, and finds the constrained minimum that scipy finds."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn

import mfoc
from mfoc.minimisers import Descent
from tests.problems import D, distance, labels, normal, seeded

SETS = {
    "box": mfoc.Box(-0.3, 0.4),
    "half-line": mfoc.Box(-0.1, float("inf")),
    "l1": mfoc.L1(2.5),
    "ball": mfoc.Ball(0.5, "l2"),
}
SOLVERS = {
    "sgd": (mfoc.Gradient(partial(torch.optim.SGD, lr=0.1)), 150),
    "momentum": (mfoc.Gradient(partial(torch.optim.SGD, lr=0.05, momentum=0.5)), 150),
    "adam": (mfoc.Gradient(partial(torch.optim.Adam, lr=0.1), lr_schedule=lambda k: 0.98**k), 500),
    "msa": (mfoc.MSA(Descent(0.1)), 150),
    "emsa": (mfoc.EMSA(), 60),
}


def bounded(name):
    weight = torch.tensor([0.4, 1.0], dtype=D)
    problem = mfoc.Problem(
        lambda t, x, u, z: x + u,
        lambda x, z: x.square().sum(1),
        [torch.zeros(2, dtype=D) for _ in range(3)],
        running_cost=lambda t, x, u, z: (weight * u.square()).sum().expand(len(x)),
        kind=lambda t: "step",
        bounds=SETS[name],
    )
    return problem, normal(5, 2, seed=5) + torch.tensor([1.0, -2.0], dtype=D)


def by_scipy(problem, cloud, name):
    """The minimum value; the penalty by splitting u into its positive and negative parts."""
    like = problem.controls
    size = sum(u.numel() for u in like)

    def smooth(u):
        controls = [torch.as_tensor(part) for part in u.reshape(len(like), -1)]
        found = mfoc.evaluate(replace(problem, bounds=None), controls, cloud)
        return float(found.value), torch.cat(found.gradient).numpy()

    tight = {"ftol": 1e-16, "gtol": 1e-12, "maxiter": 2000}
    if name == "l1":

        def split(v):
            value, slope = smooth(v[:size] - v[size:])
            weight = SETS[name].weight
            return value + weight * v.sum(), np.concatenate([slope, -slope]) + weight

        return minimize(split, np.full(2 * size, 0.1), jac=True, bounds=[(0, None)] * 2 * size, options=tight).fun
    if name == "ball":
        inside = [
            {"type": "ineq", "fun": lambda u, t=t: 0.25 - (u.reshape(len(like), -1)[t] ** 2).sum()}
            for t in range(len(like))
        ]
        return minimize(smooth, np.zeros(size), jac=True, constraints=inside, options={"ftol": 1e-14}).fun
    box = SETS[name]
    return minimize(smooth, np.zeros(size), jac=True, bounds=[(box.low, box.high)] * size, options=tight).fun


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_solver_finds_the_constrained_minimum(name, solver):
    problem, cloud = bounded(name)
    method, steps = SOLVERS[solver]
    solution = mfoc.solve(problem, method, cloud, steps=steps, tol=1e-9)
    assert distance(problem.region.project(solution.controls), solution.controls) < 1e-12
    assert solution.residual < 1e-4
    assert solution.value == pytest.approx(by_scipy(problem, cloud, name), abs=1e-7)


def test_bounds_bind_and_a_penalty_leaves_zeros():
    """The cases above are none where the free minimum is admissible."""
    free = mfoc.solve(replace(bounded("box")[0], bounds=None), mfoc.EMSA(), bounded("box")[1], steps=100)
    for name in ("box", "half-line", "ball"):
        problem, _ = bounded(name)
        assert distance(problem.region.project(free.controls), free.controls) > 0.01
    problem, cloud = bounded("l1")
    solution = mfoc.solve(problem, mfoc.EMSA(), cloud, steps=100)
    assert any((u == 0).any() for u in solution.controls)


def test_one_gradient_step_of_msa_is_gradient_with_sgd_within_bounds():
    for name in SETS:
        problem, cloud = bounded(name)
        moves = [
            mfoc.solve(problem, solver, cloud, steps=5).controls
            for solver in (mfoc.MSA(Descent(lr=0.1)), mfoc.Gradient(partial(torch.optim.SGD, lr=0.1)))
        ]
        assert distance(*moves) < 1e-13


def test_an_optimiser_that_evaluates_where_it_likes_is_refused():
    problem, cloud = bounded("box")
    with pytest.raises(mfoc.InvalidValue, match="LBFGS evaluates several times a step"):
        mfoc.solve(problem, mfoc.Gradient(partial(torch.optim.LBFGS, lr=0.5)), cloud, steps=5)


def test_a_double_integrator_is_driven_bang_bang():
    """MSA and E-MSA end at the least J there is under |u| <= 1, and not above it with a residual of zero."""
    problem = mfoc.continuous(
        lambda t, x, u, z: torch.stack([x[:, 1], u.expand(len(x))], 1),
        lambda x, z: x.square().sum(1),
        [torch.zeros((), dtype=D) for _ in range(8)],
        T=2.0,
        bounds=mfoc.Box(-1.0, 1.0),
    )
    cloud = torch.tensor([[2.0, 0.5]], dtype=D)
    solution = mfoc.solve(problem, mfoc.EMSA(), cloud, steps=200, tol=1e-9)
    assert solution.value == pytest.approx(_least(problem, cloud), abs=1e-8)
    assert (torch.stack(solution.controls) == -1.0).any()


def _least(problem, cloud):
    def smooth(u):
        found = mfoc.evaluate(problem, [torch.tensor(number) for number in u], cloud)
        return float(found.value), torch.stack(found.gradient).numpy()

    tight = {"ftol": 1e-16, "gtol": 1e-12}
    return minimize(smooth, np.zeros(problem.stages), jac=True, bounds=[(-1, 1)] * problem.stages, options=tight).fun


def test_sparse_and_bounded_networks_are_the_same_call():
    net = seeded(lambda: nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))).double()
    x, y = normal(40, 3), labels(40, 2)
    adam = mfoc.Gradient(partial(torch.optim.Adam, lr=0.05))
    for bounds in ({"weight": mfoc.L1(0.05)}, mfoc.Box(-0.2, 0.2)):
        problem = mfoc.from_module(net, nn.functional.cross_entropy, bounds=bounds)
        solution = mfoc.solve(problem, adam, (x, y), steps=150)
        trained = mfoc.to_module(net, solution)
        assert solution.value < mfoc.evaluate(problem, problem.controls, mfoc.population((x, y)).cloud()).value
        if isinstance(bounds, mfoc.Box):
            assert max(p.abs().max() for p in trained.parameters()) <= 0.2
        else:
            assert (trained[0].weight == 0).sum() >= 5
            assert (trained[0].bias != 0).all()


def test_the_penalty_is_part_of_j_and_not_of_the_particles_cost():
    problem, cloud = bounded("l1")
    controls = [normal(2, seed=t) for t in range(3)]
    mean = mfoc.rollout(problem, controls, cloud).cost.mean()
    penalty = 2.5 * sum(u.abs().sum() for u in controls)
    assert mfoc.evaluate(problem, controls, cloud).value.item() == pytest.approx(float(mean + penalty))


def test_each_particle_has_its_own_control_and_bound():
    """Per particle the problem falls apart: each is solved as if alone."""
    low = torch.tensor([[-0.2], [-1.0], [-5.0]], dtype=D)
    problem = mfoc.Problem(
        lambda t, x, u, z: x + u,
        lambda x, z: x.square().sum(1),
        [torch.zeros(3, 1, dtype=D) for _ in range(4)],
        running_cost=lambda t, x, u, z: 0.5 * u.square().sum(1),
        bounds=mfoc.Box(low, 5.0),
        per_particle=True,
    )
    cloud = torch.tensor([[1.0], [2.0], [3.0]], dtype=D)
    solution = mfoc.solve(problem, mfoc.EMSA(), cloud, steps=200, tol=1e-9)
    free = -2 * cloud / (1 + 2 * 4)  # sum of four equal controls: u = -2 x / (1 + 2 T)
    expected = torch.maximum(free, low)
    assert distance(solution.controls, [expected] * 4) < 1e-7
