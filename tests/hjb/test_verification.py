"""p = dV/dx where it holds; where it does not, the report says why."""

import dataclasses

import pytest
import torch

import mfoc
from mfoc import hjb
from tests.hjb.problems import D, diffusion, grid, lq, spiral, square
from tests.problems import interacting


@pytest.fixture(scope="module")
def value():
    return hjb.solve(lq().problem(), grid(17))


def test_the_gradient_is_the_costate_along_optimal_paths(value):
    found = hjb.verify(lq().problem(), value, square(5))
    assert float(found.gradient_error.max()) < 1e-5
    assert found.gradient_error.shape == (9,)
    torch.testing.assert_close(found.cost, found.value, atol=1e-5, rtol=0)
    assert found.outside == 0
    assert "at most" in repr(found)


def test_under_bounds_too():
    problem = dataclasses.replace(lq().problem(), bounds=mfoc.Box(-0.4, 0.4))
    found = hjb.verify(problem, hjb.solve(problem, grid(61)), square(5))
    assert float(found.gradient_error.max()) < 2e-2
    torch.testing.assert_close(found.cost, found.value, atol=1e-3, rtol=0)


def test_it_sees_the_value_of_another_problem(value):
    other = lq()
    other = mfoc.lq.LinearQuadratic.discrete(other.A, other.B, 3 * other.Q, other.R, other.QT, horizon=8)
    found = hjb.verify(other.problem(), value, square(5))
    assert float(found.gradient_error.max()) > 0.05
    assert float((found.cost - found.value).min()) >= 0
    assert float((found.cost - found.value).max()) > 0.1


def test_it_sees_a_coarse_grid():
    values = [hjb.solve(spiral(4), grid(n), candidates=torch.zeros(1, 2)) for n in (9, 41)]
    errors = [float(hjb.verify(spiral(4), value, square(3)).gradient_error.max()) for value in values]
    assert errors[1] < 1e-3 < 1e-2 < errors[0]


def test_with_noise_costs_are_compared_and_costates_are_not():
    problem = diffusion(6, 0.3)
    value = hjb.solve(problem, grid(41, 1), candidates=torch.zeros(1, 1))
    found = hjb.verify(problem, value, torch.zeros(2000, 1, dtype=D), seed=3)
    assert found.gradient_error is None
    assert "the costate of a path is random" in found.why
    gap = found.cost - found.value
    assert abs(float(gap.mean())) < 4 * float(gap.std()) / 2000**0.5
    assert "does not apply" in repr(found)
    again = hjb.verify(problem, value, torch.zeros(2000, 1, dtype=D), seed=3)
    assert torch.equal(again.cost, found.cost)


def test_interacting_particles_have_no_such_value():
    problem = mfoc.Problem(
        lambda t, x, u, z: x + 0.1 * (mfoc.mean(x) - x) + 0.1 * u,
        lambda x, z: x.square().sum(1),
        [torch.zeros(1, dtype=D)] * 8,
    )
    two = hjb.solve(lq().problem(), grid(5))
    found = hjb.verify(problem, two, square(3))
    assert found.gradient_error is None
    assert found.value is None
    assert "interact" in found.why
    with pytest.raises(mfoc.InvalidValue, match="the particles interact"):
        hjb.solve(problem, grid(5))


def test_paths_off_the_grid_are_told(value):
    assert hjb.verify(lq().problem(), value, 4 * square(3)).outside > 0.1


def test_refusals(value):
    problem, cloud = interacting()
    with pytest.raises(mfoc.InvalidValue, match="stages"):
        hjb.verify(lq(3).problem(), value, square(3))
    wider = mfoc.Problem(lambda t, x, u, z: x + u, lambda x, z: x.sum(1), [torch.zeros(2, dtype=D)] * 8)
    with pytest.raises(mfoc.InvalidValue, match="control has 2 numbers"):
        hjb.verify(wider, value, square(3))
    for ask in (lambda x: value(0, x), lambda x: value.policy(0, x), lambda x: value.gradient(0, x)):
        with pytest.raises(mfoc.InvalidValue, match="N >= 1"):
            ask(square(3)[:0])
    with pytest.raises(mfoc.InvalidType, match="value is"):
        hjb.verify(problem, problem, cloud)


def test_the_closed_loop_is_an_open_loop_of_each_particle(value):
    x = square(3)
    found = value.closed_loop(x)
    own = mfoc.Problem(
        lambda t, x, u, z: x @ lq().A.T + u @ lq().B.T,
        lambda x, z: x.square().sum(1),
        found.controls,
        running_cost=lambda t, x, u, z: 0.1 * (x.square().sum(1) + u.square().sum(1)),
        per_particle=True,
    )
    again = mfoc.rollout(own, found.controls, x)
    torch.testing.assert_close(again.cost, found.cost, atol=1e-14, rtol=0)
    torch.testing.assert_close(torch.stack(again.states), torch.stack(found.states), atol=1e-14, rtol=0)
    torch.testing.assert_close(found.cost, hjb.verify(lq().problem(), value, x).cost, atol=0, rtol=0)


def test_with_noise_a_closed_loop_is_repeatable():
    value = hjb.solve(diffusion(3, 0.3), grid(21, 1), candidates=torch.zeros(1, 1))
    x = torch.zeros(50, 1, dtype=D)
    one, same, other = (value.closed_loop(x, seed=seed).states[-1] for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert float(one.std()) == pytest.approx(0.3 * 0.5**0.5, rel=0.4)
    with pytest.raises(mfoc.InvalidValue, match="expected states"):
        value.closed_loop(torch.zeros(50, 2, dtype=D))
