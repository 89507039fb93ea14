"""The ball of disturbances: projection, samples, steepest ascent and the gap that is left, each by its definition."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mfoc
from tests.oracles.adversaries import ascended, entered, size
from tests.problems import D, distance, generator, normal

NORMS = ("linf", "l2")
BOUNDS = (None, (-0.4, 0.9))
seeds = st.integers(0, 10_000)


def inside(ball, eta):
    largest = eta.abs().max() if ball.norm == "linf" else size(eta).max()
    return float(largest) <= ball.epsilon * (1 + 1e-12)


@settings(deadline=None, max_examples=40)
@given(seed=seeds, norm=st.sampled_from(NORMS), epsilon=st.floats(1e-3, 10), scale=st.floats(0, 5))
def test_the_projection_is_the_nearest_point_of_the_ball(seed, norm, epsilon, scale):
    ball = mfoc.Ball(epsilon, norm)
    eta, other = scale * normal(5, 2, 3, seed=seed), ball.sample(normal(5, 2, 3), generator(seed))
    nearest = ball.project(eta)
    assert inside(ball, nearest)
    torch.testing.assert_close(ball.project(nearest), nearest, rtol=1e-14, atol=0)
    # A point of a convex set is the nearest one just when no direction into the set makes an acute angle.
    angle = ((eta - nearest) * (other - nearest)).flatten(1).sum(1)
    assert float(angle.max()) <= 1e-12 * (1 + scale) * (1 + epsilon)
    within = size(eta) <= epsilon if norm == "l2" else eta.abs() <= epsilon
    assert torch.equal(torch.where(within, nearest, eta), eta)


@pytest.mark.parametrize(
    ("norm", "shape"),
    [*product(NORMS, [(50, 3), (50, 2, 4, 4), (50,)])],
)
def test_a_sample_fills_the_ball_and_comes_from_its_generator(norm, shape):
    ball, x = mfoc.Ball(0.3, norm), torch.zeros(shape, dtype=D)
    before = torch.get_rng_state()
    eta = ball.sample(x, generator(3))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(eta, ball.sample(x, generator(3)))
    assert not torch.equal(eta, ball.sample(x, generator(4)))
    assert inside(ball, eta)
    reach = eta.abs() if norm == "linf" else size(eta)
    assert float(reach.max()) > 0.27
    assert float(reach.min()) < 0.05


@pytest.mark.parametrize("times", [2, 3, 7])
@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("norm", NORMS)
def test_n_steps_are_n_times_one_step(norm, bounds, times):
    ball = mfoc.Ball(0.5, norm, bounds)
    x, slope = normal(6, 3, seed=1).clamp(-0.4, 0.9), normal(6, 3, seed=2)
    slope[0] = 0
    start = ball.sample(x, generator(3))
    by_hand, single = start, start
    for _ in range(times):
        by_hand = ascended(ball, x, by_hand, slope, 0.11)
        single = ball.ascend(x, single, slope, 0.11)
    together = ball.ascend(x, start, slope, 0.11, times=times)
    assert inside(ball, together)
    assert distance(single, by_hand) < 1e-14
    assert distance(ball.enter(x, together), entered(ball, x, by_hand)) < 1e-14
    assert torch.equal(ball.enter(x, together)[0], ball.enter(x, start)[0])  # no slope, no move
    if bounds is None or norm == "l2":
        assert distance(together, by_hand) < 1e-14


@settings(deadline=None, max_examples=30)
@given(seed=seeds, bounds=st.sampled_from(BOUNDS))
def test_the_gap_in_the_cube_is_that_of_its_best_vertex(seed, bounds):
    ball = mfoc.Ball(0.5, "linf", bounds)
    x, slope = normal(4, 3, seed=seed).clamp(-0.4, 0.9), normal(4, 3, seed=seed + 1)
    eta = ball.sample(x, generator(seed))
    least, most = entered(ball, x, torch.full_like(x, -0.5)), entered(ball, x, torch.full_like(x, 0.5))
    vertices = [torch.where(torch.tensor(corner), most, least) for corner in product([False, True], repeat=3)]
    moves = torch.stack([(slope * (v - entered(ball, x, eta))).sum(1) for v in vertices])
    gap = ball.gap(x, eta, slope)
    assert float(gap.min()) >= 0
    torch.testing.assert_close(gap, moves.max(0).values, rtol=1e-12, atol=1e-14)
    best = torch.stack(vertices)[moves.argmax(0), torch.arange(4)] - x
    assert float(ball.gap(x, best, slope).abs().max()) < 1e-14


@settings(deadline=None, max_examples=30)
@given(seed=seeds)
def test_the_gap_in_the_euclidean_ball_has_a_closed_form(seed):
    ball, x, slope = mfoc.Ball(0.5, "l2"), normal(4, 2, 3, seed=seed), normal(4, 2, 3, seed=seed + 1)
    eta = ball.sample(x, generator(seed))
    gap = ball.gap(x, eta, slope)
    assert float(gap.min()) >= 0
    torch.testing.assert_close(gap, (0.5 * size(slope)).flatten() - (slope * eta).sum((1, 2)), rtol=1e-12, atol=1e-13)
    assert float(ball.gap(x, 0.5 * slope / size(slope), slope).abs().max()) < 1e-13
