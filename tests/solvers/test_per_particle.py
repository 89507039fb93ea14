"""A control for each particle: every solver finds each start's own optimal path."""

from dataclasses import replace
from functools import partial

import pytest
import torch

import mfoc
from mfoc.minimisers import LBFGS
from tests.problems import D, discrete_lq, normal


def case(n=9, stages=4):
    """A contracting LQ problem of independent particles, of which each has its own control."""
    root, eye = normal(3, 3, seed=1), torch.eye(3, dtype=D)
    A = 0.6 * eye + 0.1 * normal(3, 3, seed=2)
    spec = {"A": A, "B": 0.5 * normal(3, 2, seed=3), "Q": 0.1 * root @ root.mT + 0.1 * eye}
    lq = discrete_lq(spec | {"R": 2 * torch.eye(2, dtype=D), "QT": eye}, horizon=stages)
    own = [torch.zeros(n, 2, dtype=D) for _ in range(stages)]
    return lq, replace(lq.problem(), controls=own, per_particle=True), 1 + normal(n, 3, seed=7)


SOLVERS = {
    "gradient": (mfoc.Gradient(partial(torch.optim.SGD, lr=1.0)), 200),
    "msa": (mfoc.MSA(LBFGS(steps=15, tol=1e-10)), 60),
    "emsa": (mfoc.EMSA(0.1, inner=LBFGS(steps=15, tol=1e-10)), 100),
    "newton": (mfoc.NewtonCG(), 4),
    "gauss-newton": (mfoc.NewtonCG(gauss_newton=True), 4),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_each_particle_takes_its_own_optimal_path(name):
    lq, problem, x = case()
    solver, steps = SOLVERS[name]
    solution = mfoc.solve(problem, solver, x, steps=steps, tol=1e-9)
    exact = lq.path(x)
    assert solution.status is mfoc.Status.CONVERGED, solution.message
    assert (torch.stack(solution.controls, 1) - exact.controls).abs().max() < 1e-7
    assert solution.value == pytest.approx(exact.cost.mean().item(), rel=1e-12)
    shared = lq.value(x.mean(0), torch.cov(x.mT, correction=0), shared=True).item()
    assert solution.value < 0.99 * shared  # another class of control, another minimum


def test_a_box_holds_each_particle_by_itself():
    _, problem, x = case()
    bounded = replace(problem, bounds=mfoc.Box(-0.05, 0.05))
    together = mfoc.solve(bounded, mfoc.NewtonCG(), x, steps=30, tol=1e-10)
    for i in range(3):
        alone = replace(bounded, controls=[u[i : i + 1] for u in bounded.controls])
        one = mfoc.solve(alone, mfoc.NewtonCG(), x[i : i + 1], steps=30, tol=1e-10)
        for u, own in zip(together.controls, one.controls, strict=True):
            assert (u[i : i + 1] - own).abs().max() < 1e-7
    assert any(bool((u.abs() == 0.05).any()) for u in together.controls)


def test_a_cost_of_all_controls_is_refused():
    """N times too large, as it would be for each of the particles."""
    _, problem, x = case()
    summed = replace(problem, running_cost=lambda t, x, u, z: u.square().sum().expand(len(x)))
    with pytest.raises(mfoc.InvalidValue, match=r"running_cost of stage 0.*sum over all rows"):
        mfoc.solve(summed, mfoc.NewtonCG(), x, steps=1)
    crossed = replace(problem, dynamics=lambda t, x, u, z: x + u.mean() * torch.ones_like(x))
    with pytest.raises(mfoc.InvalidValue, match="dynamics of stage 0"):
        mfoc.solve(crossed, mfoc.NewtonCG(), x, steps=1)
    named = replace(problem, running_cost=lambda t, x, u, z: (u - mfoc.mean(u)).square().sum(-1))
    assert mfoc.solve(named, mfoc.NewtonCG(), x, steps=1).last.step == 1


def test_controls_of_particles_stay_on_one_rank(monkeypatch):
    problem = mfoc.Problem(
        lambda t, x, u, z: x + u, lambda x, z: x.square().sum(1), [torch.zeros(4, 2, dtype=D)], per_particle=True
    )
    monkeypatch.setattr("mfoc.validation.active", lambda: True)
    with pytest.raises(mfoc.InvalidValue, match="one rank"):
        problem.validate(mfoc.Particles(normal(4, 2)))
