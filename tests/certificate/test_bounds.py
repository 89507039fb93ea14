"""The certificate under bounds: projected slopes, curvature along the face, gaps among admissible controls."""

from dataclasses import replace
from functools import partial

import pytest
import torch

import mfoc
from mfoc.certificate import Standing
from tests.problems import D, normal


def quadratic(bounds, curvature=(1.0, 1.0), centre=(2.0, 0.3)):
    """J(u) = sum_k h_k (u_k - c_k)^2 / 2 of one control of two numbers."""
    h, c = torch.tensor(curvature, dtype=D), torch.tensor(centre, dtype=D)
    return mfoc.Problem(
        lambda t, x, u, z: x + u,
        lambda x, z: (h * (x - c).square()).sum(1) / 2,
        [torch.zeros(2, dtype=D)],
        bounds=bounds,
    )


CLOUD = torch.zeros(4, 2, dtype=D)


def at(*numbers):
    return [torch.tensor(numbers, dtype=D)]


def certified(problem, controls, cloud=CLOUD):
    return mfoc.certify(problem, controls, cloud)


def test_a_control_pressed_against_its_bound_is_stationary():
    certificate = certified(quadratic(mfoc.Box(-1.0, 1.0)), at(1.0, 0.3))
    assert certificate.verdict.sample is Standing.MINIMUM
    assert certificate.residual < 1e-12
    assert certificate.gap < 1e-12
    free = certified(quadratic(None), at(1.0, 0.3))
    assert free.verdict.sample is Standing.NOT_STATIONARY


def test_a_bound_that_is_not_pressed_against_counts_for_nothing():
    certificate = certified(quadratic(mfoc.Box(-1.0, 1.0)), at(-1.0, 0.3))
    assert certificate.verdict.sample is Standing.NOT_STATIONARY
    assert certificate.residual == pytest.approx(3.0)
    assert certificate.gap == pytest.approx(3 * 2)  # H is linear, its slope 3, and the bound lies 2 away


def test_curvature_is_that_along_the_face():
    """The entry that is held curves downwards: no minimum of the free problem, and one of this."""
    certificate = certified(quadratic(mfoc.Box(-1.0, 1.0), curvature=(-1.0, 2.0), centre=(-3.0, 0.3)), at(1.0, 0.3))
    assert certificate.hessian.value == pytest.approx(2.0)
    assert certificate.verdict.sample is Standing.MINIMUM


def test_where_bounds_leave_no_direction_free_the_verdict_says_so():
    certificate = certified(quadratic(mfoc.Box(-1.0, 1.0), centre=(2.0, -3.0)), at(1.0, -1.0))
    assert certificate.hessian.value == torch.inf
    assert certificate.verdict.sample is Standing.MINIMUM
    assert "no direction free" in str(certificate)


def test_a_saddle_along_the_face_is_one():
    problem = quadratic(mfoc.Box(-1.0, 1.0), curvature=(1.0, -1.0), centre=(2.0, 0.0))
    assert certified(problem, at(1.0, 0.0)).verdict.sample is Standing.SADDLE


def test_the_sphere_bends_the_hessian():
    """On |u| = 1 with J = -3 u_1 the Lagrangian's Hessian along the sphere is its multiplier, 3."""
    problem = mfoc.Problem(
        lambda t, x, u, z: x + u, lambda x, z: -3 * x[:, 0], [torch.zeros(2, dtype=D)], bounds=mfoc.Ball(1.0, "l2")
    )
    certificate = certified(problem, at(1.0, 0.0))
    assert certificate.hessian.value == pytest.approx(3.0)
    assert certificate.verdict.sample is Standing.MINIMUM
    worst = certified(problem, at(-1.0, 0.0))
    assert worst.verdict.sample is Standing.NOT_STATIONARY


def test_entries_that_do_not_pay_are_stationary_at_zero():
    problem = quadratic(mfoc.L1(0.5))
    certificate = certified(problem, at(1.5, 0.0))
    assert certificate.verdict.sample is Standing.MINIMUM
    assert certificate.value == pytest.approx((0.25 + 0.09) / 2 + 0.75)
    assert certified(problem, at(2.0, 0.3)).verdict.sample is Standing.NOT_STATIONARY


@pytest.mark.parametrize("bounds", [mfoc.Box(-0.2, 0.3), mfoc.L1(0.3), mfoc.Ball(0.3, "l2"), mfoc.Simplex()])
def test_solutions_of_many_stages_are_certified(bounds):
    """With particles that differ, so that slopes are those of groups; the population's interval holds its residual."""
    start = torch.full((2,), 0.5 if isinstance(bounds, mfoc.Simplex) else 0.0, dtype=D)
    problem = mfoc.Problem(
        lambda t, x, u, z: x + torch.tanh(u),
        lambda x, z: (x - z).square().sum(1),
        [start for _ in range(3)],
        running_cost=lambda t, x, u, z: 0.1 * u.square().sum().expand(len(x)),
        kind=lambda t: "step",
        bounds=bounds,
    )
    population = normal(60, 2, seed=1), normal(60, 2, seed=2) + torch.tensor([1.0, -2.0], dtype=D)
    solution = mfoc.solve(problem, mfoc.EMSA(), population, steps=100, tol=1e-7)
    certificate = mfoc.certify(problem, solution, population)
    assert certificate.verdict.sample is Standing.MINIMUM
    assert certificate.stationarity.value < 1e-5
    moved = [0.5 * (u + start) for u in solution.controls]
    assert mfoc.certify(problem, moved, population).verdict.sample is not Standing.MINIMUM


def test_controls_of_each_particle_are_no_sample():
    """Its own control each: what is found holds of these particles, with no interval beyond them."""
    problem = mfoc.Problem(
        lambda t, x, u, z: x + u,
        lambda x, z: x.square().sum(1),
        [torch.zeros(5, 2, dtype=D) for _ in range(2)],
        running_cost=lambda t, x, u, z: u.square().sum(1),
        per_particle=True,
    )
    cloud = normal(5, 2, seed=3)
    sgd = mfoc.Gradient(partial(torch.optim.SGD, lr=0.5))
    certificate = mfoc.certify(problem, mfoc.solve(problem, sgd, cloud, steps=200, tol=1e-10), cloud)
    assert certificate.verdict.standing is Standing.MINIMUM
    assert certificate.stationarity.low == certificate.stationarity.value == certificate.stationarity.high
    assert certificate.hessian.value == pytest.approx(2 / 5)  # of the mean over five particles
    worse = mfoc.certify(problem, problem.controls, cloud)
    assert worse.verdict.standing is Standing.NOT_STATIONARY


def test_an_unbounded_problem_is_certified_as_one_with_bounds_far_away():
    far = quadratic(mfoc.Box(-100.0, 100.0))
    near = [certified(problem, at(1.9, 0.3)) for problem in (far, replace(far, bounds=None))]
    assert near[0].residual == pytest.approx(near[1].residual)
    assert near[0].hessian.value == pytest.approx(near[1].hessian.value)


def test_a_direction_that_constraints_without_a_multiplier_bar_either_way_is_no_saddle():
    """J = (u1^2 + 4 u1 u2 + u2^2) / 2 bends down along (1, -1), and is nowhere lower where both are non-negative."""
    H = torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=D)

    def verdict(H):
        def cost(x, z):
            return (x @ H * x).sum(1) / 2

        problem = mfoc.Problem(lambda t, x, u, z: x + u, cost, at(0.0, 0.0), bounds=mfoc.Box(0.0, 5.0))
        return certified(problem, problem.controls).verdict

    assert verdict(H).sample is Standing.CANNOT_TELL
    assert "barely active" in str(verdict(H))
    assert verdict(-H).sample is Standing.SADDLE  # its direction leads inwards
    assert verdict(H + 2 * torch.eye(2, dtype=D)).sample is Standing.MINIMUM
