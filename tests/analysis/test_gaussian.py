"""Expectations under Gaussian laws against mpmath in 25 digits, plain sums, and draws."""

import math
from functools import partial

import mpmath
import pytest
import torch
from torch import nn

from mfoc.analysis.gaussian import GaussianMoments
from mfoc.errors import InvalidType, InvalidValue
from tests.oracles import gaussian as oracle

VARIANCES = (0.01, 1.5, 8.0)  # 1.5: where the form of chi_q with phi'' is wrong for hardtanh


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("name", ["tanh", "silu", "gelu", "erf", "relu", "hardtanh", "elu", "softsign"])
def test_moments_of_one_input(name):
    moments = GaussianMoments.of(name)
    phi, kinks, q = oracle.ACTIVATION[name], oracle.KINKS.get(name, ()), f64(*VARIANCES)
    values = {"V": moments.second_moment(q), "growth": moments.growth(q), "slope": moments.slope_moment(q)}
    for index, variance in enumerate(VARIANCES):
        with mpmath.workdps(25):
            exact = {
                "V": oracle.second_moment(phi, variance, kinks),
                "growth": mpmath.diff(lambda v: oracle.second_moment(phi, v, kinks), variance, h=1e-8),
            }
            root = mpmath.sqrt(variance)
            cuts = [k / root for k in kinks]
            rate = oracle.SLOPE.get(name, partial(mpmath.diff, phi, h=1e-10))
            exact["slope"] = oracle.mean(lambda z: rate(root * z) ** 2, cuts)  # noqa: B023
        for key, expected in exact.items():
            assert float(values[key][index]) == pytest.approx(float(expected), rel=2e-13), (key, variance)


@pytest.mark.parametrize("name", ["relu", "erf", "gelu", "linear", "hardtanh"])
@pytest.mark.parametrize(("q1", "q2", "c"), [(1.0, 1.0, 0.5), (0.3, 4.0, -0.7), (6.0, 2.0, 0.995), (2.0, 2.0, 0.0)])
def test_pairs_against_an_integral_of_the_conditional_mean(name, q1, q2, c):
    value, slope = GaussianMoments.of(name).pair(f64(q1), f64(q2), f64([c]))
    with mpmath.workdps(25):
        k = mpmath.sqrt(mpmath.mpf(q1) * q2) * c
        expected = oracle.covariance(name, q1, q2, k)
        rate = mpmath.diff(lambda k: oracle.covariance(name, q1, q2, k), k, h=1e-9)
    assert float(value) == pytest.approx(float(expected), rel=1e-13, abs=1e-15)
    assert float(slope) == pytest.approx(float(rate), rel=1e-12, abs=1e-13)


def named(value):
    return getattr(value, "__name__", str(value))


def leaky(u):
    return torch.nn.functional.leaky_relu(u, 0.3)


@pytest.mark.parametrize("given", ["tanh", "gelu", "erf", "silu", leaky, torch.sin, nn.Softplus()], ids=named)
def test_series_and_closed_forms_agree_with_the_plane(given):
    """The slow twin: a Gauss-Legendre rule over the plane, which every activation can take."""
    moments = GaussianMoments.of(given)
    q1, q2, c = f64(0.4, 3.0), f64(1.0, 5.0), f64([0.3, -0.95], [0.9999, 0.0])
    plain = moments._plane(q1[:, None], q2[None], 1 - c, lambda p, s: (p[0] * p[1], s[0] * s[1]))
    for fast, slow in zip(moments.pair(q1, q2, c), plain, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("given", ["tanh", "hardtanh", "relu", "gelu", "elu", torch.abs], ids=named)
def test_the_ends_of_the_correlation(given):
    """At c = 1 a pair is one input; at c = -1 its mirror image."""
    moments = GaussianMoments.of(given)
    q = f64(0.2, 3.0)
    same, slopes = moments.pair(q, q, torch.ones(2, 2).double())
    torch.testing.assert_close(same.diagonal(), moments.second_moment(q), rtol=1e-12, atol=0)
    torch.testing.assert_close(slopes.diagonal(), moments.slope_moment(q), rtol=1e-7, atol=0)
    u = moments.activation.function
    z = torch.linspace(-9, 9, 200_001, dtype=torch.float64)
    density = torch.exp(-z.square() / 2)
    mirrored = (u(z) * u(-z) * density).sum() / density.sum()
    value = moments.pair(f64(1.0), f64(1.0), f64([-1.0]))[0]
    torch.testing.assert_close(value[0, 0], mirrored, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("given", ["tanh", "hardtanh", "relu", "silu"])
def test_small_angles_lose_no_digits(given):
    """D(delta) is E phi'^2 less a term of order sqrt(delta), at kinks, or delta."""
    moments = GaussianMoments.of(given)
    for delta in (1e-6, 1e-10, 1e-14):
        lost, slope = moments.decorrelation(f64(1.3), f64(delta))
        bound = 2 * delta**0.5 if moments.activation.kinks else 4 * delta
        assert -1e-12 <= float(moments.slope_moment(f64(1.3)) - lost) <= bound + 1e-12
        assert -1e-12 <= float(moments.slope_moment(f64(1.3)) - slope) <= 2 * bound + 1e-12


@pytest.mark.parametrize("given", ["tanh", "gelu", "hardtanh", "relu", "softsign"])
def test_draws_agree(given):
    """The law of large numbers: a million pairs, within four standard errors."""
    moments = GaussianMoments.of(given)
    z = torch.randn(2, 10**6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u1, u2 = 1.2 * z[0], 0.8 * (0.6 * z[0] + 0.8 * z[1])
    phi = moments.activation
    value, slope = moments.pair(f64(1.44), f64(0.64), f64([0.6]))
    for exact, draws in (
        (value, phi.function(u1) * phi.function(u2)),
        (slope, phi.slope(u1) * phi.slope(u2)),
        (moments.growth(f64(1.44)), phi.function(u1) * phi.slope(u1) * z[0] / 1.2),
    ):
        assert abs(float(exact) - float(draws.mean())) < 4 * float(draws.std()) / 1000


def test_a_vanishing_variance_sees_the_tangent():
    moments = GaussianMoments.of("tanh")
    assert moments.second_moment(f64(0.0)).item() == 0
    assert moments.slope_moment(f64(0.0)).item() == 1
    assert moments.growth(f64(0.0)).item() == pytest.approx(1, rel=1e-12)
    assert GaussianMoments.of("sigmoid").second_moment(f64(0.0)).item() == 0.25


@pytest.mark.parametrize(
    ("q", "error"), [(f64(-1.0), InvalidValue), (f64(float("nan")), InvalidValue), (1.0, InvalidType)]
)
def test_what_is_no_variance_is_refused(q, error):
    with pytest.raises(error, match="variances"):
        GaussianMoments.of("tanh").second_moment(q)


@pytest.mark.parametrize(
    "given", [lambda u: u.abs().sqrt(), lambda u: u.sign() * u.abs() ** 0.4], ids=["root", "power"]
)
def test_a_slope_without_a_mean_square_is_refused(given):
    with pytest.raises(InvalidValue, match=r"do not converge|has no derivative|jumps"):
        GaussianMoments.of(given)


@pytest.mark.parametrize("activation", ["softplus", nn.Softplus()])
@pytest.mark.parametrize("q", [25.0, 130.0])
def test_softplus_is_taken_without_its_linear_end(activation, q):
    """Torch drops e^-u from u = 20 on, a jump of 2e-9 that is no part of the function."""
    root = mpmath.sqrt(q)
    ends = [-12, -4, -2, -1, -0.5, 0, 0.5, 1, 2, 4, 12]

    def square(z):
        return mpmath.log1p(mpmath.exp(root * z)) ** 2 * mpmath.npdf(z)

    with mpmath.workdps(25):
        exact = float(mpmath.quad(square, ends))
    found = GaussianMoments.of(activation).second_moment(torch.tensor(q, dtype=torch.float64))
    assert float(found) == pytest.approx(exact, rel=1e-13)


@pytest.mark.parametrize("name", ["erf", "gelu"])
@pytest.mark.parametrize("q", [1e-6, 0.3, 30.0, 1e6])
def test_closed_decorrelation_has_all_digits_at_every_variance(name, q):
    """Against the difference of the textbook covariance in 60 digits, which loses 30 of them."""
    moments = GaussianMoments.of(name)

    def covariance(k):
        if name == "erf":
            return 2 / mpmath.pi * mpmath.asin(2 * k / (1 + 2 * q))
        a = 1 + mpmath.mpf(q)
        bulk = (q * (q - k**2 / a) + k**2 / a) / mpmath.sqrt(a**2 - k**2)
        return k * (mpmath.mpf(1) / 4 + mpmath.asin(k / a) / (2 * mpmath.pi)) + bulk / (2 * mpmath.pi)

    for delta in (1e-14, 1e-3, 0.7, 1.0, 1.7, 2.0):
        spread, slope = (float(part) for part in moments.decorrelation(f64(q), f64(delta)))
        with mpmath.workdps(60):
            k = mpmath.mpf(q) * (1 - mpmath.mpf(delta))
            expected = (covariance(mpmath.mpf(q)) - covariance(k)) / (mpmath.mpf(q) * mpmath.mpf(delta))
            rate = mpmath.diff(covariance, k)
        assert spread == pytest.approx(float(expected), rel=1e-13)
        assert slope == pytest.approx(float(rate), rel=1e-13, abs=1e-14)


@pytest.mark.parametrize("name", ["erf", "gelu"])
def test_closed_decorrelation_is_that_of_the_plane(name):
    moments = GaussianMoments.of(name)
    for q, delta in ((0.3, 0.3), (30.0, 1e-6), (30.0, 1.6)):
        closed = moments.decorrelation(f64(q), f64(delta))
        change, slope = moments._plane(f64(q), f64(q), f64(delta), lambda p, s: ((p[0] - p[1]).square(), s[0] * s[1]))
        torch.testing.assert_close(closed[0], change / (2 * q * delta), rtol=1e-13, atol=0)
        torch.testing.assert_close(closed[1], slope, rtol=1e-13, atol=0)


@pytest.mark.parametrize(("beta", "threshold"), [(20, 20), (0.5, 20), (1, 12), (3.0, 30)])
def test_softplus_of_any_sharpness(beta, threshold):
    """It is softplus(beta u) / beta, whatever torch's threshold cuts off."""
    q = f64(0.3, 4.0)
    given = GaussianMoments.of(nn.Softplus(beta, threshold))
    plain = GaussianMoments.of("softplus")
    torch.testing.assert_close(given.second_moment(q), plain.second_moment(beta**2 * q) / beta**2, rtol=1e-12, atol=0)
    torch.testing.assert_close(given.slope_moment(q), plain.slope_moment(beta**2 * q), rtol=1e-12, atol=0)
    assert GaussianMoments.of(partial(nn.functional.softplus, beta=beta, threshold=threshold)).activation.kinks == ()


def test_far_out_panels_grow_with_the_distance_from_zero():
    """tanh is 1 - O(e^-2u) there, which equal panels find in hundreds of times the work; of a sine they all count."""
    growing = GaussianMoments.of("tanh")
    equal = GaussianMoments(growing.activation, growing.strip, growing.reach)
    assert growing.growing > 1
    for name in ("second_moment", "slope_moment", "growth", "mean"):
        found, expected = (getattr(moments, name)(f64(3e3, 1e5)) for moments in (growing, equal))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)
    for delta in (1e-3, 1.9):
        found, expected = (moments.decorrelation(f64(2e3), f64(delta)) for moments in (growing, equal))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    assert GaussianMoments.of("sin").growing == 1


def test_enormous_variances_take_few_nodes():
    q = f64(1e10)
    moments = GaussianMoments.of("tanh")
    slope = float(moments.slope_moment(q))
    spread = float(moments.decorrelation(q, f64(1e-4))[0])
    assert moments._rule(q.sqrt(), 1e5)[0].numel() < 4000
    # far out phi is a sign: the slopes' mean is density(0) int sech^4 du, and pairs part with their angle over pi
    assert slope == pytest.approx(4 / 3 / (2 * math.pi * 1e10) ** 0.5, rel=1e-9)
    angle = 2 * math.asin((1e-4 / 2) ** 0.5)
    assert spread == pytest.approx(4 * angle / math.pi / (2 * 1e10 * 1e-4), rel=1e-2)
