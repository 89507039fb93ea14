"""Certificates of problems with constraints on states, and of particles that have controls of their own."""

from dataclasses import replace

import pytest
import torch

import mfoc
from mfoc.certificate import Standing
from tests.problems import D, normal
from tests.solvers.test_augmented import GOAL, NEWTON, REST, integrator, solved


def test_a_solution_that_meets_its_constraints_is_a_minimum():
    problem = integrator(4)
    solution = solved(problem)
    certificate = mfoc.certify(problem, solution, REST)
    assert certificate.verdict.standing is Standing.MINIMUM
    assert certificate.violation < 1e-8
    assert certificate.residual < 1e-6
    assert certificate.value == pytest.approx(solution.value)
    assert "constraints met" in repr(certificate)


def test_controls_that_miss_their_goal_are_infeasible():
    problem = integrator(4)
    early = mfoc.solve(problem, replace(NEWTON, penalty=1.0), REST, steps=1)
    certificate = mfoc.certify(problem, early, REST)
    assert certificate.verdict.standing is Standing.INFEASIBLE
    assert certificate.violation > 0.1


def test_a_leaf_of_other_units_does_not_hide_that_constraints_are_missed():
    """The reference that says what is small is as far away in each leaf, not as the largest: T is not moved by 1e9."""
    problem = mfoc.continuous(
        lambda t, x, u, z: u.expand(len(x), 1),
        lambda x, z: 0 * x[:, 0],
        [torch.full((1,), -0.3, dtype=D) for _ in range(3)],
        running_cost=lambda t, x, u, z: (1 + u.square()).expand(len(x)),
        T=mfoc.FreeTime(2.0, least=0.1),
        terminal=mfoc.Equality(lambda x, z: x),
    )
    start = torch.ones(1, 1, dtype=D)
    last = mfoc.solve(problem, NEWTON, start, steps=1).last
    thrown = {"controls": [torch.full((1,), 1e9, dtype=D)] * 3, "T": torch.tensor(0.1, dtype=D)}
    certificate = mfoc.certify(problem, replace(last, controls=thrown), start)
    assert certificate.verdict.standing is Standing.INFEASIBLE


def test_a_constraint_in_mean_has_intervals():
    problem, cloud = integrator(4, terminal=mfoc.Equality(lambda x, z: x - GOAL, in_mean=True)), normal(24, 2, seed=1)
    certificate = mfoc.certify(problem, solved(problem, cloud=cloud), cloud)
    assert certificate.verdict.sample is Standing.MINIMUM
    assert not certificate.complete


def test_bounds_and_constraints_together():
    problem = integrator(8, bounds=mfoc.Box(-4.5, 4.5))
    certificate = mfoc.certify(problem, solved(problem), REST)
    assert certificate.verdict.standing is Standing.MINIMUM


def test_multipliers_are_asked_for():
    problem = integrator(4)
    solution = solved(problem)
    with pytest.raises(mfoc.InvalidValue, match="AugmentedLagrangian"):
        mfoc.certify(problem, solution.controls, REST)
    with pytest.raises(mfoc.InvalidValue, match="others than those of the multipliers"):
        mfoc.certify(problem, solution, torch.zeros(3, 2, dtype=D))


def test_particles_with_controls_of_their_own_are_all_there_are():
    problem = replace(integrator(4, n=5, terminal=None), terminal_cost=lambda x, z: (x - GOAL).square().sum(1))
    cloud = normal(5, 2, seed=1)
    certificate = mfoc.certify(problem, mfoc.solve(problem, mfoc.NewtonCG(), cloud, steps=9, tol=1e-10), cloud)
    assert certificate.verdict.standing is Standing.MINIMUM
    assert not certificate.interacting
    assert "all there are" in repr(certificate)
    assert "jackknife" not in repr(certificate)
