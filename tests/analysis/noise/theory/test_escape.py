"""Times of first passage and of escape against closed forms, scipy's quadrature and simulated paths."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, special

import mfoc
from mfoc.analysis.noise import (
    DoubleWell,
    escape_time,
    flat_against_sharp,
    kramers_time,
    mean_first_passage_time,
)
from mfoc.errors import InvalidType, InvalidValue


def quartic(x):
    return (x.square() - 1).square()


def by_scipy(potential, start, end, diffusion, left=-math.inf):
    """The double integral as it is written, the inner one by adaptive quadrature at each node of the outer."""

    def u(x):
        return float(potential(torch.tensor([x], dtype=torch.float64))) / diffusion

    def inner(y):
        return integrate.quad(lambda z: math.exp(u(y) - u(z)), left, y, epsabs=0, epsrel=1e-10, limit=200)[0]

    return integrate.quad(inner, start, end, epsabs=0, epsrel=1e-9, limit=200)[0] / diffusion


@given(st.floats(0.1, 5), st.floats(-3, 3), st.floats(0.01, 4), st.floats(0.01, 10))
def test_a_constant_force_takes_distance_over_speed(speed, start, distance, diffusion):
    found = mean_first_passage_time(lambda x: -speed * x, start, start + distance, diffusion)
    assert found == pytest.approx(distance / speed, rel=1e-9)


@given(st.floats(0.2, 3), st.floats(-2, 2), st.floats(0.1, 2), st.floats(0.2, 3))
def test_ornstein_uhlenbeck(h, start, distance, diffusion):
    """Mean times of first passage are sqrt(pi) / h int e^(s^2) (1 + erf s) ds in units of the stationary width."""
    width = math.sqrt(2 * diffusion / h)
    exact = (
        math.sqrt(math.pi)
        / h
        * integrate.quad(
            lambda s: special.erfcx(-s), start / width, (start + distance) / width, epsabs=0, epsrel=1e-12
        )[0]
    )
    found = mean_first_passage_time(lambda x: h * x.square() / 2, start, start + distance, diffusion)
    assert found == pytest.approx(exact, rel=1e-9)


@given(st.floats(0.3, 3), st.floats(0.5, 2))
def test_a_cone_has_a_closed_form(slope, diffusion):
    """U = c |x| from 0 to 1: 2 D / c^2 (e^(c / D) - 1) - 1 / c."""
    c = slope
    exact = 2 * diffusion / c**2 * math.expm1(c / diffusion) - 1 / c
    assert mean_first_passage_time(lambda x: c * x.abs(), 0.0, 1.0, diffusion) == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize(("c", "kink"), [(1.0, 0.3), (0.4, 1 / 3)])
def test_a_kink_on_the_way_costs_digits_only(c, kink):
    """As times add, a cone's tip on the way is reached from the start by a constant force, and left as a cone."""
    D, end = 0.5, 1.0
    far = end - kink
    exact = kink / c + 2 * D / c**2 * math.expm1(c * far / D) - far / c
    found = mean_first_passage_time(lambda x: c * (x - kink).abs(), 0.0, end, D)
    assert found == pytest.approx(exact, rel=1e-7)
    with pytest.raises(InvalidValue, match="without jumps"):
        mean_first_passage_time(lambda x: x.square() + (x > kink), 0.0, end, D)


@pytest.mark.parametrize(("start", "end"), [(-1.0, 1.0), (-1.0, 0.0), (-2.5, 0.4), (0.7, 1.9)])
def test_a_double_well_against_scipy(start, end):
    exact = by_scipy(quartic, start, end, 0.25)
    assert mean_first_passage_time(quartic, start, end, 0.25) == pytest.approx(exact, rel=1e-8)
    assert mean_first_passage_time(quartic, -start, -end, 0.25) == pytest.approx(exact, rel=1e-8)  # mirrored


def test_heavy_tails_confine_if_they_are_light_enough():
    """U = c ln(1 + x^2): the inner integral is finite for 2 c > D, and of Student's kind."""
    found = mean_first_passage_time(lambda x: 2 * torch.log1p(x.square()), 0.0, 1.0, 1.0)
    exact = by_scipy(lambda x: 2 * torch.log1p(x.square()), 0.0, 1.0, 1.0)
    assert found == pytest.approx(exact, rel=1e-8)
    with pytest.raises(InvalidValue, match="confine"):
        mean_first_passage_time(lambda x: 0.4 * torch.log1p(x.square()), 0.0, 1.0, 1.0)


def test_a_wall_confines():
    """Reflection at 0, as an infinite potential: y^2 / 2 D from the wall to y."""
    found = mean_first_passage_time(lambda x: torch.where(x < 0, torch.inf, 0.0).double(), 0.0, 1.0, 0.5)
    assert found == pytest.approx(1.0, rel=1e-9)


@pytest.mark.parametrize("wall", [-0.37, -3.3, -100.0])
def test_a_wall_confines_wherever_it_stands(wall):
    """What lies behind it counts for nothing, as no path gets there."""

    def walled(x):
        return torch.where((x < wall) & (x > wall - 5), torch.inf, torch.zeros_like(x))

    for sign in (1.0, -1.0):
        found = mean_first_passage_time(lambda x, sign=sign: walled(sign * x), 0.0, sign * 2.0, 0.5)
        assert found == pytest.approx((2.0 - wall) ** 2 - wall**2, rel=1e-9)


def test_a_climb_too_long_for_a_float_takes_for_ever():
    """Also where the top is so steep that no digits of the exponent settle."""
    assert mean_first_passage_time(lambda x: x.square() / 2, 0.0, 1.0, 5e-6) == math.inf


def test_times_add_along_the_way():
    first, second = (mean_first_passage_time(quartic, a, b, 0.1) for a, b in ((-1, 0.2), (0.2, 1.3)))
    assert mean_first_passage_time(quartic, -1, 1.3, 0.1) == pytest.approx(first + second, rel=1e-9)
    assert mean_first_passage_time(quartic, 0.5, 0.5, 0.1) == 0


def test_deep_wells_do_not_overflow():
    found = mean_first_passage_time(lambda x: 5 * quartic(x), -1.0, 1.0, 0.01)
    assert found == pytest.approx(kramers_time(lambda x: 5 * quartic(x), -1.0, 0.0, 0.01), rel=2e-3)
    assert found > 1e215
    assert mean_first_passage_time(lambda x: 50 * quartic(x), -1.0, 1.0, 0.01) == math.inf


def test_simulated_paths_take_that_long():
    """Euler-Maruyama sees the path on a grid: as if the end were .5826 sqrt(2 D h) further (Broadie et al. 1997)."""
    h, steps, n, end, D = 0.02, 2000, 2000, 0.8, 0.7
    problem = mfoc.continuous(
        lambda t, x, u, z: -x,
        lambda x, z: x[:, 0],
        [torch.zeros(1, dtype=torch.float64)] * steps,
        T=h * steps,
        diffusion=math.sqrt(2 * D),
    )
    x = torch.zeros(n, 1, dtype=torch.float64)
    noise = mfoc.schemes.brownian(n, steps, 1, seed=0, like=x)
    paths = torch.cat(mfoc.rollout(problem, problem.controls, mfoc.Particles(x, {"noise": noise})).states, 1)
    reached = paths >= end
    assert bool(reached.any(1).all())
    times = h * reached.double().argmax(1)  # the first, of equal ones
    exact = mean_first_passage_time(lambda x: x.square() / 2, 0.0, end + 0.5826 * math.sqrt(2 * D * h), D)
    assert float(times.mean()) == pytest.approx(exact, abs=4 * float(times.std()) / math.sqrt(n))


def test_kramers_is_the_limit_and_half_of_it_the_time_to_the_top():
    """The share by which it is off falls as D / Delta U: the next order of Laplace's method."""
    gaps, tops = [], []
    for D in (0.02, 0.01, 0.005):
        found = escape_time(quartic, -1.0, 0.0, 1.0, D)
        assert found.kramers == pytest.approx(2 * math.pi / math.sqrt(8 * 4) * math.exp(1 / D))
        assert found.height == pytest.approx(1)
        gaps.append(found.exact / found.kramers - 1)
        tops.append(mean_first_passage_time(quartic, -1.0, 0.0, D) / found.kramers)
    assert gaps[0] / gaps[1] == pytest.approx(2, rel=0.1)
    assert gaps[1] / gaps[2] == pytest.approx(2, rel=0.05)
    assert tops[-1] == pytest.approx(0.5, rel=0.01)


@given(st.floats(0.1, 4), st.floats(1, 10), st.floats(0.1, 5))
def test_the_double_well_is_what_it_says(flat, factor, height):
    well = DoubleWell(flat, flat * factor, height)
    points = torch.tensor([well.flat_minimum, well.sharp_minimum, 0.0], dtype=torch.float64, requires_grad=True)
    u = well(points)
    slope = torch.autograd.grad(u.sum(), points, create_graph=True)[0]
    curvature = torch.autograd.grad(slope.sum(), points)[0]
    torch.testing.assert_close(u.detach(), torch.tensor([0, 0, height], dtype=torch.float64), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(slope.detach(), torch.zeros(3).double(), rtol=0, atol=1e-8)
    torch.testing.assert_close(
        curvature, torch.tensor([flat, flat * factor, -flat / 2], dtype=torch.float64), rtol=1e-8, atol=0
    )
    near = torch.tensor([-1e-12, 1e-12], dtype=torch.float64, requires_grad=True)  # both sides of the top
    torch.testing.assert_close(
        torch.autograd.functional.hessian(lambda x: well(x).sum(), near).diagonal(),
        torch.full((2,), -flat / 2, dtype=torch.float64),
        rtol=1e-6,
        atol=0,
    )


def test_the_flat_minimum_is_kept_longer():
    found = flat_against_sharp(1.0, 9.0, 1.0, 0.05)
    assert found.flat.kramers / found.sharp.kramers == pytest.approx(3)
    assert found.ratio == pytest.approx(3, rel=0.1)
    assert found.verdict.startswith("the sharp minimum is left first: the flat one is kept")
    assert "alike" in flat_against_sharp(1.0, 1.0, 1.0, 0.05).verdict
    assert "over a barrier of 20 D" in repr(found.flat)


def test_times_too_large_for_a_float_are_still_compared():
    near, far = (flat_against_sharp(1.0, 4.0, 1.0, D) for D in (1 / 680, 1 / 800))
    assert math.isfinite(near.flat.exact)
    assert math.isinf(far.sharp.exact)
    assert far.ratio == pytest.approx(near.ratio, rel=1e-3)
    assert far.verdict.startswith("the sharp minimum is left first")


def test_the_verdict_says_how_far_off_the_formula_is():
    smooth = escape_time(quartic, -1.0, 0.0, 1.0, 0.05)
    assert "(-2.0%)" in smooth.verdict
    bent = flat_against_sharp(1.0, 8.0, 1.0, 0.15).flat  # the top of a lopsided well is no parabola
    assert f"({bent.kramers / bent.exact - 1:+.1%})" in bent.verdict
    assert "higher barriers" in escape_time(quartic, -1.0, 0.0, 1.0, 1.0).verdict


def test_the_stationary_law_weighs_the_minima_by_how_long_they_are_kept():
    """Detailed balance: the masses on both sides of the top are as the times, for a high barrier."""
    found = flat_against_sharp(1.0, 4.0, 1.0, 0.04)
    well, D = found.well, found.flat.diffusion
    grid = torch.linspace(-6, 6, 20_001, dtype=torch.float64)
    density = mfoc.analysis.noise.stationary_density(well, 0.1, 2 * D / 0.1, grid)
    left = float(torch.trapezoid(density[grid <= 0], grid[grid <= 0]))
    assert left / (1 - left) == pytest.approx(found.ratio, rel=1e-3)


def test_figure():
    pytest.importorskip("matplotlib")
    figure = flat_against_sharp(1.0, 4.0, 1.0, 0.1).plot()
    assert len(figure.axes) == 1


REFUSED = {
    "does not confine": (lambda: mean_first_passage_time(torch.zeros_like, 0.0, 1.0, 1.0), InvalidValue, "confine"),
    "falls": (lambda: mean_first_passage_time(lambda x: x, 0.0, 1.0, 1.0), InvalidValue, "confine"),
    "NaN": (lambda: mean_first_passage_time(lambda x: x.sqrt(), 0.0, 1.0, 1.0), InvalidValue, "potential is nan"),
    "shape": (lambda: mean_first_passage_time(lambda x: x.sum(), 0.0, 1.0, 1.0), InvalidValue, "expected a tensor of"),
    "no function": (lambda: mean_first_passage_time(1.0, 0.0, 1.0, 1.0), InvalidType, "potential"),
    "no diffusion": (lambda: mean_first_passage_time(quartic, 0.0, 1.0, 0.0), InvalidValue, "diffusion"),
    "start at infinity": (lambda: mean_first_passage_time(quartic, -math.inf, 1.0, 1.0), InvalidValue, "start is -inf"),
    "a tensor": (lambda: mean_first_passage_time(quartic, torch.zeros(()), 1.0, 1.0), InvalidType, "start is a tensor"),
    "no minimum": (lambda: kramers_time(quartic, -0.5, 0.0, 0.1), InvalidValue, "expected a minimum"),
    "no maximum": (lambda: kramers_time(quartic, -1.0, 1.0, 0.1), InvalidValue, "expected a maximum"),
    "no curvature": (lambda: kramers_time(lambda x: x**4, 0.0, 1.0, 0.1), InvalidValue, "not zero"),
    "end before the top": (lambda: escape_time(quartic, -1.0, 0.0, -0.5, 0.1), InvalidValue, "beyond the barrier"),
    "sharp below flat": (lambda: DoubleWell(2.0, 1.0, 1.0), InvalidValue, "larger curvature"),
    "no barrier": (lambda: flat_against_sharp(1.0, 2.0, 0.0, 1.0), InvalidValue, "height"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_arguments_are_refused(name):
    act, error, words = REFUSED[name]
    with pytest.raises(error, match=words):
        act()
