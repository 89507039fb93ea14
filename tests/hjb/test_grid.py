"""Dynamic programming on grids against Riccati, Hopf-Lax, Cole-Hopf, an interior-point method and plain loops."""

import dataclasses
import logging
import math

import casadi
import pytest
import torch

import mfoc
from mfoc import hjb
from tests.hjb.problems import SPIRAL, D, bumpy, diffusion, grid, lq, spiral, square
from tests.oracles.hjb import bellman_by_search, cole_hopf, hopf_lax
from tests.problems import error

ONE = torch.zeros(1, 2, dtype=D)


def order(errors, ratio=2.0):
    return math.log(errors[0] / errors[1]) / math.log(ratio)


def test_linear_quadratic_is_riccati():
    exact = lq()
    value, P, x = hjb.solve(exact.problem(), grid(25)), exact.riccati().P, square()
    for t in (0, 3, 8):
        assert error(value(t, x), (x * (x @ P[t])).sum(1)) < 1e-6
        assert error(value.gradient(t, x), 2 * x @ P[t]) < 1e-6
    assert error(value.policy(2, x), exact.feedback(2, x)) < 1e-6


def test_linear_quadratic_with_noise_is_riccati():
    """Three Gauss-Hermite nodes integrate quadratics exactly; the data are a tensor, and of one Brownian motion."""
    exact = lq(sigma=torch.tensor([[0.0], [0.1]], dtype=D))
    value = hjb.solve(exact.problem(), grid(25), z=lambda w: w, noise_dim=1)
    x = square()
    expected = torch.stack([exact.value(row) for row in x])
    assert error(value(0, x), expected) < 1e-5
    assert error(value.policy(0, x), exact.feedback(0, x)) < 1e-5


@pytest.mark.parametrize(("power", "least"), [(1, 0.9), (2, 1.8)])
def test_the_order_in_two_dimensions(power, least):
    """With dt ~ dx and dt ~ dx^2."""
    x, errors = square(3), []
    exact = hopf_lax(bumpy, SPIRAL, x, 0.5)
    for points, stages in ((16, 5), (31, 5 * 2**power)):
        value = hjb.solve(spiral(stages), grid(points), candidates=ONE)
        errors.append(float((value(0, x) - exact).abs().max()))
    assert order(errors) > least


@pytest.mark.parametrize("dims", [1, 2])
def test_noise_is_cole_hopf_to_first_order_in_the_step(dims):
    x = torch.linspace(-1, 1, 9, dtype=D)[:, None].repeat(1, dims)
    exact, errors = cole_hopf(bumpy, x, 0.5, 1.0, 0.5), []
    for stages in (4, 8):
        value = hjb.solve(diffusion(stages, 0.5, dims), grid(31, dims), candidates=ONE[:, :dims])
        errors.append(float((value(0, x) - exact).abs().max()))
    assert errors[1] < 0.01
    assert order(errors) > 0.9


def test_three_states_are_riccati():
    eye = torch.eye(3, dtype=D)
    A = eye + 0.1 * torch.tensor([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.5], [0.0, 0.3, 0.0]], dtype=D)
    B = 0.3 * torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]], dtype=D)
    exact = mfoc.lq.LinearQuadratic.discrete(A, B, 0.1 * eye, 0.2 * eye[:2, :2], eye, horizon=3)
    value = hjb.solve(exact.problem(), grid(13, 3))
    x = torch.cartesian_prod(*[torch.linspace(-1, 1, 3, dtype=D)] * 3)
    assert error(value(0, x), (x * (x @ exact.riccati().P[0])).sum(1)) < 1e-5
    assert error(value.policy(0, x), exact.feedback(0, x)) < 1e-5


def double_well(stages=20, **options):
    """From the hill at 0 the better well is the one at 1."""
    controls = [torch.zeros(1, dtype=D)] * stages
    end = lambda x, z: 4 * (x[:, 0] ** 2 - 1) ** 2 - 0.4 * x[:, 0]  # noqa: E731
    running = lambda t, x, u, z: (u.square().sum() / 2).expand(len(x))  # noqa: E731
    return mfoc.continuous(lambda t, x, u, z: u.expand_as(x), end, controls, running_cost=running, **options)


def test_double_well_is_hopf_lax_on_both_sides_of_the_kink():
    """A state moves straight to its best end y: V = min_y g(y) + (x - y)^2 / 2; two ends cost alike at a kink."""
    x = torch.linspace(-1.5, 1.5, 31, dtype=D)[:, None]
    ends = torch.linspace(-3, 3, 60001, dtype=D)
    costs = 4 * (ends**2 - 1) ** 2 - 0.4 * ends + (x - ends) ** 2 / 2
    candidates = torch.linspace(-3, 3, 13, dtype=D)[:, None]
    value = hjb.solve(double_well(), grid(301, 1, 2.0), candidates=candidates)
    assert error(value(0, x), costs.min(1).values) < 2e-3
    best = ends[costs.argmin(1)][:, None] - x
    clear = (x[:, 0] + 0.4).abs() > 0.1  # away from the kink
    assert float((value.policy(0, x) - best)[clear].abs().max()) < 0.05


def test_one_start_can_miss_the_better_well():
    """Why candidates= is there: beside it Newton's method alone ends in the well it begins in."""
    x = torch.tensor([[-0.05]], dtype=D)
    alone = hjb.solve(double_well(1), grid(81, 1, 2.0), candidates=torch.full((1, 1), -1.0, dtype=D))
    several = hjb.solve(double_well(1), grid(81, 1, 2.0), candidates=torch.tensor([[-1.0], [1.0]], dtype=D))
    assert float(several(0, x)) < float(alone(0, x)) - 0.1
    assert float(several.policy(0, x)) > 0.9


def bounded(low=-0.4, high=0.7):
    return dataclasses.replace(lq().problem(), bounds=mfoc.Box(low, high))


def test_bounds_are_kept_and_ipopt_agrees():
    value = hjb.solve(bounded(), grid(61))
    x = torch.tensor([[1.0, 0.8], [-1.2, -0.9], [0.3, -0.2]], dtype=D)
    u = value.policy(0, x)
    assert float(u.min()) == -0.4  # the bound binds
    assert float(u.max()) <= 0.7
    exact = lq()
    for row, found, first in zip(x, value(0, x), u, strict=True):
        opti = casadi.Opti()
        controls, state, cost = opti.variable(8), casadi.DM(row.numpy()), 0
        for t in range(8):
            cost += 0.1 * casadi.sumsqr(state) + 0.1 * controls[t] ** 2
            state = casadi.DM(exact.A.numpy()) @ state + casadi.DM(exact.B.numpy()) @ controls[t]
        opti.subject_to(opti.bounded(-0.4, controls, 0.7))
        opti.minimize(cost + casadi.sumsqr(state))
        opti.solver("ipopt", {"print_time": False}, {"print_level": 0, "sb": "yes", "tol": 1e-10})
        solved = opti.solve()
        assert abs(float(found) - solved.value(opti.f)) < 2e-4
        assert abs(float(first) - solved.value(controls[0])) < 2e-2


@pytest.mark.parametrize("kind", ["cubic", "linear"])
def test_a_plain_search_over_controls_agrees(kind):
    """The whole backward pass in loops, scipy's interpolation and a fine list of controls."""
    problem = double_well(2)
    axis = grid(21, 1, 2.0)[0]
    controls = torch.linspace(-4, 4, 401, dtype=D)
    plain = bellman_by_search(problem, axis, controls, degree=3 if kind == "cubic" else 1)
    candidates = torch.linspace(-4, 4, 33, dtype=D)[:, None]
    value = hjb.solve(problem, [axis], interpolation=kind, candidates=candidates)
    inner = slice(4, 17)  # where no candidate leaves the grid
    gap = value.values[0][inner] - plain[inner]
    assert float(gap.abs().max()) < (2e-3 if kind == "cubic" else 2e-2)


def test_a_problem_for_each_particle_and_a_tied_one_have_the_same_value():
    shared = lq().problem()
    own = dataclasses.replace(shared, controls=[torch.zeros(5, 1, dtype=D)] * 8, per_particle=True)
    tied = dataclasses.replace(shared, controls=torch.zeros(1, dtype=D), schedule=mfoc.tied, horizon=8)
    x, axes = square(3), grid(9)
    first = hjb.solve(shared, axes)
    for other in (own, tied):
        torch.testing.assert_close(hjb.solve(other, axes)(0, x), first(0, x), atol=1e-12, rtol=0)


def test_a_function_that_reads_the_entries_of_a_shared_control_is_called_as_it_is_written():
    """u[0] is the first entry of a control, not the control of the first state."""
    dynamics = lambda t, x, u, z: torch.stack([x[:, 0] + 0.1 * u[0], x[:, 1] + 0.1 * u[1]], 1)  # noqa: E731
    cost = lambda t, x, u, z: (0.1 * (u[0] ** 2 + 2 * u[1] ** 2)).expand(len(x))  # noqa: E731
    problem = mfoc.Problem(dynamics, lambda x, z: x.square().sum(1), [torch.zeros(2, dtype=D)], running_cost=cost)
    x = square(5)
    # u minimises 0.1 c u^2 + (x + 0.1 u)^2: u = -x / (c + 0.1)
    expected = -x / torch.tensor([1.1, 2.1], dtype=D)
    assert error(hjb.solve(problem, grid(9)).policy(0, x), expected) < 1e-6


def test_single_precision_and_its_error():
    problem = mfoc.continuous(
        lambda t, x, u, z: u.expand_as(x),
        lambda x, z: x.square().sum(1),
        [torch.zeros(1)] * 4,
        running_cost=lambda t, x, u, z: u.square().sum().expand(len(x)),
    )
    value = hjb.solve(problem, grid(15, 1, dtype=torch.float32))
    assert value.values.dtype == torch.float32
    x = torch.tensor([[0.5]])
    # Discrete Riccati of dx = u dt with unit weights: P_T = 1, 1/P grows by h a step.
    assert abs(float(value(0, x)) - 0.25 / 2) < 1e-4


def test_states_that_leave_the_grid_are_counted_and_warned_of(caplog):
    outward = mfoc.Problem(lambda t, x, u, z: 1.5 * x + 0 * u, lambda x, z: x[:, 0] ** 2, [torch.zeros(1, dtype=D)])
    with caplog.at_level(logging.WARNING, logger="mfoc.hjb"):
        value = hjb.solve(outward, grid(31, 1))
    assert abs(float(value.leaving[0]) - 10 / 31) < 1e-9  # the five points at each end with |x| > 2
    assert "32% of the grid" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="mfoc.hjb"):
        assert float(hjb.solve(lq().problem(), grid(9)).leaving.max()) < 0.1
    assert not caplog.records


def test_what_it_prints_and_draws():
    value = hjb.solve(lq(2).problem(), grid(9))
    assert repr(value).startswith("GridValue(2 stages, 9 x 9 points on [-3, 3] x [-3, 3], cubic")
    assert value.plot(1).axes[0].get_title() == "value function, stage 1 of 2"
    assert value == value
    assert value != hjb.solve(lq(2).problem(), grid(9))
