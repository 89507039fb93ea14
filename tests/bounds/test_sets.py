"""What a set says of a control: projections, projected gradients, faces, landings; by brute force and scipy."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, minimize

import mfoc
from mfoc.bounds import L1, Box, EuclideanBall, Simplex
from tests.problems import D, normal

CONVEX = {
    "box": Box(-0.5, 0.7),
    "half-line": Box(0.0, math.inf),
    "box of tensors": Box(torch.linspace(-1, 0, 5, dtype=D), torch.linspace(0, 1, 5, dtype=D)),
    "simplex": Simplex(),
    "simplex of three": Simplex(3.0),
    "ball": EuclideanBall(0.8),
}
SETS = {**CONVEX, "l1": L1(0.4)}


def inside(own, seed, rows=6):
    """Admissible controls, many of them on the boundary."""
    return own.project(2 * normal(rows, 5, seed=seed), 1)


@pytest.mark.parametrize("name", CONVEX)
@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000))
def test_a_projection_is_the_nearest_admissible_control(name, seed):
    """It is admissible, it is its own projection, and no admissible control lies at an acute angle beyond it."""
    own, u, others = CONVEX[name], 2 * normal(4, 5, seed=seed), inside(CONVEX[name], seed + 1, rows=40)
    near = own.project(u, 1)
    torch.testing.assert_close(own.project(near, 1), near)
    for point, projected in zip(u, near, strict=True):
        assert ((others - projected) @ (point - projected)).max() < 1e-9


@pytest.mark.parametrize("name", CONVEX)
def test_the_projected_gradient_is_the_limit_of_projected_steps(name):
    own = CONVEX[name]
    u, slope, step = inside(own, 3), normal(6, 5, seed=4), 1e-7
    found = own.stationary(u, slope, 1)
    torch.testing.assert_close(found, (u - own.project(u - step * slope, 1)) / step, atol=1e-5, rtol=1e-5)


def test_the_projected_gradient_of_a_penalty_is_its_subgradient_of_least_norm():
    u, slope = torch.tensor([1.0, -1.0, 0.0, 0.0, 0.0], dtype=D), torch.tensor([0.1, 0.1, 0.3, 0.9, -0.9], dtype=D)
    torch.testing.assert_close(L1(0.4).stationary(u, slope, 0), torch.tensor([0.5, -0.3, 0.0, 0.5, -0.5], dtype=D))


@pytest.mark.parametrize("name", SETS)
def test_a_face_is_an_orthogonal_projection_that_keeps_the_projected_gradient(name):
    own, u, slope = SETS[name], inside(SETS[name], 5), normal(6, 5, seed=6)
    v, w = normal(6, 5, seed=7), normal(6, 5, seed=8)
    along = own.face(u, slope, v, 1)
    torch.testing.assert_close(own.face(u, slope, along, 1), along)
    torch.testing.assert_close((along * w).sum(1), (v * own.face(u, slope, w, 1)).sum(1))
    found = own.stationary(u, slope, 1)
    torch.testing.assert_close(own.face(u, slope, found, 1), found)
    matrix = torch.stack([own.face(u, slope, e.expand_as(u), 1) for e in torch.eye(5, dtype=D)], 1)
    torch.testing.assert_close(own.dimension(u, slope, 1), matrix.diagonal(dim1=1, dim2=2).sum(1))


@pytest.mark.parametrize("name", SETS)
def test_landing_is_admissible_and_small_steps_descend(name):
    own, u, target = SETS[name], inside(SETS[name], 9), normal(6, 5, seed=10)
    slope = u - target  # of |u - target|^2 / 2

    def value(v):
        penalty = own.penalty(v, 1)
        return (v - target).square().sum(1) / 2 + (0 if penalty is None else penalty)

    found = own.stationary(u, slope, 1)
    landed = own.land(u, u - 1e-3 * found, slope, 1)
    torch.testing.assert_close(own.project(landed, 1), landed)
    moving = found.norm(dim=1) > 1e-6
    assert moving.any()
    assert (value(landed) < value(u))[moving].all()
    assert (value(landed) <= value(u) + 1e-12).all()


@pytest.mark.parametrize("name", SETS)
def test_any_metric_rests_at_the_minimum_alone(name):
    """Fed the projected gradient and landed, a badly scaled descent ends where scipy's constrained minimum is."""
    own, target = SETS[name], normal(5, seed=11)
    metric = torch.tensor([1.0, 0.1, 0.5, 2.0, 0.3], dtype=D)
    u = own.project(normal(5, seed=12), 0)
    for _ in range(4000):
        found = own.stationary(u, u - target, 0)
        u = own.land(u, u - 0.1 * metric * found, u - target, 0)
    soft = target.sign() * (target.abs() - 0.4).clamp_min(0)
    exact = soft if name == "l1" else own.project(target, 0)
    torch.testing.assert_close(u, exact, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("dtype", "high"), [(torch.float32, 1e5), (D, 1e10)])
def test_a_bound_far_away_does_not_widen_the_one_nearby(dtype, high):
    """A width that stands for "large" is no scale: what is on a bound does not change with it."""
    u, slope = torch.tensor([0.0, 3.0], dtype=dtype), torch.ones(2, dtype=dtype)
    for own in (Box(0.0, high), Box(-high, 0.0), Box(0.0, math.inf)):
        side = -1.0 if own.high == 0 else 1.0
        torch.testing.assert_close(own.stationary(side * u, side * slope, 0), side * slope * (u != 0))
        torch.testing.assert_close(own.land(side * u, side * 0.9 * u, side * slope, 0), side * 0.9 * u)


@pytest.mark.parametrize(("dtype", "k"), [(torch.bfloat16, 16), (torch.float32, 5000)])
def test_many_small_probabilities_are_not_taken_for_zero(dtype, k):
    u, slope = torch.full((k,), 1 / k, dtype=dtype), normal(k, seed=16).to(dtype)
    torch.testing.assert_close(Simplex().stationary(u, slope, 0), slope - slope.mean(), atol=0.02, rtol=0.02)


def test_what_the_slope_presses_to_zero_on_a_simplex_is_zero_to_the_bit():
    own, u, slope = Simplex(), inside(Simplex(), 17, rows=200), normal(200, 5, seed=18)
    landed = own.land(u, u - 0.01 * normal(200, 5, seed=19), slope, 1)
    still = (u == 0) & (own.stationary(u, slope, 1) == 0)
    assert bool(still.any())
    assert bool((landed[still] == 0).all())


def test_leading_axes_are_controls_of_their_own():
    for own in SETS.values():
        u, slope = inside(own, 13), normal(6, 5, seed=14)
        each = torch.stack([own.stationary(a, b, 0) for a, b in zip(u, slope, strict=True)])
        torch.testing.assert_close(own.stationary(u, slope, 1), each)


def test_the_bend_of_a_sphere_is_its_multiplier_over_the_radius():
    own, u = EuclideanBall(2.0), torch.tensor([2.0, 0.0], dtype=D)
    assert own.bend(u, torch.tensor([-3.0, 1.0], dtype=D), 0).item() == pytest.approx(1.5)
    assert own.bend(u, torch.tensor([3.0, 1.0], dtype=D), 0).item() == 0  # the slope leads inwards


def test_the_simplex_is_met_as_scipy_meets_it():
    target = normal(5, seed=15)
    found = minimize(
        lambda u: ((u - target.numpy()) ** 2).sum(), [0.2] * 5, method="trust-constr", bounds=[(0, None)] * 5,
        constraints=LinearConstraint([[1.0] * 5], 1, 1), options={"gtol": 1e-10, "xtol": 1e-12},
    )  # fmt: skip
    torch.testing.assert_close(Simplex().project(target, 0), torch.tensor(found.x), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: Box(1.0, -1.0), mfoc.InvalidValue, "no control lies between"),
        (lambda: Box(math.nan, 1.0), mfoc.InvalidValue, "no control lies between"),
        (lambda: Box(math.inf, math.inf), mfoc.InvalidValue, "no control lies between"),
        (lambda: Box("a", 1.0), mfoc.InvalidType, "low is a str"),
        (lambda: Box(torch.tensor(1), 2.0), mfoc.InvalidType, "floating point"),
        (lambda: Box(torch.zeros(2), torch.zeros(3)), mfoc.InvalidValue, "do not broadcast"),
        (lambda: L1(-1.0), mfoc.InvalidValue, "weight"),
        (lambda: Simplex(0.0), mfoc.InvalidValue, "total"),
        (lambda: mfoc.Ball(1.0, "l2", (0.0, 1.0)).as_bounds(), mfoc.InvalidValue, "disturbed state"),
    ],
)
def test_what_is_no_set_is_refused(make, error, says):
    with pytest.raises(error, match=says):
        make()
