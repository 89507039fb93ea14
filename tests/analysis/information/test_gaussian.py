"""Closed forms, against determinants, the formulas as published, and plain minimisation."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from mfoc.analysis.information import gaussian_bottleneck, gaussian_information
from mfoc.errors import InvalidType, InvalidValue
from tests.problems import D, normal


def joint(seed, d=3, m=2):
    """The covariances of a random Gaussian vector (X, Y)."""
    root = normal(d + m, d + m + 1, seed=seed)
    whole = root @ root.mT / (d + m) + 0.1 * torch.eye(d + m, dtype=D)
    return whole[:d, :d], whole[:d, d:], whole[d:, d:]


def log_det(matrix):
    return np.linalg.slogdet(np.asarray(matrix))[1]


def informations(projection, sigma_x, sigma_xy, sigma_y):
    """I(T;X) and I(T;Y) of T = A X + N(0, I), from determinants."""
    noise = np.eye(len(projection))
    of_t = projection @ sigma_x @ projection.T + noise
    left = sigma_x - sigma_xy @ np.linalg.inv(sigma_y) @ sigma_xy.T
    of_t_given_y = projection @ left @ projection.T + noise
    return log_det(of_t) / 2, (log_det(of_t) - log_det(of_t_given_y)) / 2


def test_a_standard_normal_behind_noise_of_a_tenth():
    assert gaussian_information(1.0, 0.1) == pytest.approx(math.log(11) / 2, rel=1e-14)


@given(st.integers(0, 1000))
def test_the_information_of_a_channel_is_a_ratio_of_determinants(seed):
    signal, noise = joint(seed)[0], joint(seed + 5000)[0]
    wanted = (log_det(signal + noise) - log_det(noise)) / 2
    assert gaussian_information(signal, noise) == pytest.approx(wanted, rel=1e-9)


def test_a_singular_signal_has_information_and_no_signal_none():
    flat = torch.tensor([[1.0, 1.0], [1.0, 1.0]], dtype=D)
    assert gaussian_information(flat, 0.5) == pytest.approx(math.log(5) / 2)
    assert gaussian_information(torch.zeros(2, 2), 0.5) == 0


def test_a_faint_signal_keeps_its_digits():
    assert gaussian_information(1e-14, 1.0) == pytest.approx(5e-15, rel=1e-12)


@settings(max_examples=30)
@given(st.integers(0, 1000), st.floats(1.01, 50))
def test_the_bottleneck_as_published(seed, beta):
    """Chechik et al. 2005, theorem 3.1: eigenvectors v and values lambda of Sigma_(x|y) Sigma_x^-1, from the left."""
    sigma_x, sigma_xy, sigma_y = (part.numpy() for part in joint(seed))
    left = sigma_x - sigma_xy @ np.linalg.inv(sigma_y) @ sigma_xy.T
    values, vectors = np.linalg.eig((left @ np.linalg.inv(sigma_x)).T)
    values, vectors = values.real, vectors.real
    found = gaussian_bottleneck(*joint(seed), beta)
    order = np.argsort(values)
    np.testing.assert_allclose(found.eigenvalues, values[order], rtol=1e-9, atol=1e-12)
    kept = [i for i in order if values[i] < 1 - 1e-9 and beta > 1 / (1 - values[i])]
    assert len(found.projection) == len(kept)
    for row, i in zip(found.projection.numpy(), kept, strict=True):
        v = vectors[:, i]
        published = math.sqrt((beta * (1 - values[i]) - 1) / (values[i] * (v @ sigma_x @ v))) * v
        np.testing.assert_allclose(row * np.sign(row @ published), published, rtol=1e-6, atol=1e-9)
    if kept:
        wanted = informations(found.projection.numpy(), sigma_x, sigma_xy, sigma_y)
        assert (found.information_x, found.information_y) == pytest.approx(wanted, rel=1e-8)
    else:
        assert (found.information_x, found.information_y) == (0, 0)


@pytest.mark.parametrize("beta", [1.5, 3.0, 12.0])
def test_no_projection_does_better(beta):
    parts = [part.numpy() for part in joint(3)]
    found = gaussian_bottleneck(*joint(3), beta)

    def cost(flat):
        of_x, of_y = informations(flat.reshape(3, 3), *parts)
        return of_x - beta * of_y

    starts = np.random.default_rng(0).normal(size=(4, 9))
    best = min(optimize.minimize(cost, start).fun for start in starts)
    assert found.information_x - beta * found.information_y == pytest.approx(best, abs=1e-6)


def test_directions_enter_at_their_critical_trade_offs():
    correlations = torch.tensor([0.9, 0.5], dtype=D)
    parts = (torch.eye(2, dtype=D), torch.diag(correlations), torch.eye(2, dtype=D))
    first, second = (float(b) for b in gaussian_bottleneck(*parts, 2.0).critical_betas)
    assert (first, second) == pytest.approx((1 / 0.81, 4.0))
    kept = [len(gaussian_bottleneck(*parts, beta).projection) for beta in (0.5, 0.999 * first, 1.001 * first, 3.999)]
    assert kept == [0, 0, 1, 1]
    assert len(gaussian_bottleneck(*parts, 4.001).projection) == 2
    assert "nothing is kept" in str(gaussian_bottleneck(*parts, 1.0))


@given(st.integers(0, 500))
def test_the_slope_of_the_curve_is_one_over_beta_and_it_ends_at_all_there_is(seed):
    sigma_x, sigma_xy, sigma_y = joint(seed)
    found = gaussian_bottleneck(sigma_x, sigma_xy, sigma_y, 3.0)
    betas = float(found.critical_betas[0]) * torch.tensor([1.3, 2.7, 9.0], dtype=D)
    step = 1e-5
    before, after = found.curve(betas * (1 - step)), found.curve(betas * (1 + step))
    slopes = (after[1] - before[1]) / (after[0] - before[0])
    torch.testing.assert_close(slopes, 1 / betas, rtol=1e-3, atol=0)
    whole = torch.cat([torch.cat([sigma_x, sigma_xy], 1), torch.cat([sigma_xy.mT, sigma_y], 1)])
    assert found.total == pytest.approx((log_det(sigma_x) + log_det(sigma_y) - log_det(whole)) / 2, rel=1e-8)
    end = found.curve(torch.tensor(1e9, dtype=D))[1]
    assert float(end) == pytest.approx(found.total, rel=1e-6)


def test_the_curve_passes_through_the_point():
    found = gaussian_bottleneck(*joint(1), 4.0)
    of_x, of_y = found.curve(torch.tensor([4.0]))
    assert (float(of_x), float(of_y)) == pytest.approx((found.information_x, found.information_y))


def test_what_tells_nothing_never_enters():
    found = gaussian_bottleneck(torch.eye(2), torch.zeros(2, 1), torch.eye(1), 5.0)
    assert found.critical_betas.isinf().all()
    assert found.total == 0
    assert len(found.projection) == 0
    assert str(found) == "nothing is kept at any beta: X tells nothing of Y"
    found.plot()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_type_follows_the_input_and_the_digits_are_those_of_float64(dtype):
    """Numbers that every type holds exactly."""
    parts = (torch.eye(2, dtype=D), torch.diag(torch.tensor([0.75, 0.5], dtype=D)), torch.eye(2, dtype=D))
    wanted = gaussian_bottleneck(*parts, 9.0)
    found = gaussian_bottleneck(*(part.to(dtype) for part in parts), 9.0)
    assert found.projection.dtype == found.eigenvalues.dtype == found.critical_betas.dtype == dtype
    told = (found.information_x, found.information_y, found.total)
    assert told == pytest.approx((wanted.information_x, wanted.information_y, wanted.total), rel=1e-14)
    assert gaussian_information(parts[0].to(dtype), 0.1) == pytest.approx(math.log(11), rel=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_units_do_not_matter(dtype):
    """A covariance in kilometres and grams is no more singular than it was."""
    units = torch.diag(torch.tensor([1e-6, 1.0, 1e6], dtype=D))
    sigma_x, sigma_xy, sigma_y = joint(2)
    wanted = gaussian_bottleneck(sigma_x, sigma_xy, sigma_y, 9.0)
    parts = (units @ sigma_x @ units, units @ sigma_xy, sigma_y)
    found = gaussian_bottleneck(*(part.to(dtype) for part in parts), 9.0)
    assert found.information_x == pytest.approx(wanted.information_x, rel=1e-4)
    noise = (units @ joint(7)[0] @ units).to(dtype)
    scaled = gaussian_information(parts[0].to(dtype), noise)
    assert scaled == pytest.approx(gaussian_information(sigma_x, joint(7)[0]), rel=1e-4)


def test_many_coordinates_of_small_and_large_variance_are_no_singular_covariance():
    variances = torch.logspace(0, -5, 200)
    found = gaussian_bottleneck(torch.diag(variances), 0.9995 * torch.diag(variances), torch.diag(variances), 2.0)
    assert found.total == pytest.approx(-100 * math.log1p(-(0.9995**2)), rel=1e-3)


@pytest.mark.parametrize("correlation", [1e-5, 1e-9, 1e-12])
def test_a_faint_correlation_keeps_its_digits(correlation):
    one = torch.ones(1, 1, dtype=D)
    found = gaussian_bottleneck(one, correlation * one, one, 3 / correlation**2)
    assert found.total == pytest.approx(correlation**2 / 2, rel=1e-9)
    assert found.information_x == pytest.approx(math.log(3) / 2, rel=1e-9)
    assert [float(told) for told in found.curve(one[0])] == [0, 0]
    assert "1 of 1 directions" in str(found)


def test_the_figure_shows_the_curve_and_where_directions_enter():
    axis = gaussian_bottleneck(*joint(1), 4.0).plot().axes[0]
    assert {text.get_text() for text in axis.get_legend().get_texts()} == {
        "the optimum",
        "a direction enters",
        "beta = 4",
        "I(X;Y)",
    }


one = torch.eye(2, dtype=D)


@pytest.mark.parametrize(
    ("parts", "kind", "says"),
    [
        ((one, one, one), InvalidValue, "infinite"),
        ((one, 1.5 * one, one), InvalidValue, "no covariance"),
        ((torch.ones(2, 2, dtype=D), 0 * one, one), InvalidValue, "singular"),
        ((one, 0 * one, torch.ones(2, 2, dtype=D)), InvalidValue, "covariance_y is singular"),
        ((-one, 0 * one, one), InvalidValue, "below 0"),
        ((one + torch.tensor([[0, 0.1], [0, 0]], dtype=D), 0 * one, one), InvalidValue, "symmetric"),
        ((one, torch.zeros(3, 2, dtype=D), one), InvalidValue, r"\(2, 2\)"),
        ((one * math.nan, one, one), InvalidValue, "NaN"),
        ((one, one * math.nan, one), InvalidValue, "finite"),
        ((torch.zeros(2, 3), one, one), InvalidValue, "square"),
        ((torch.eye(2, dtype=torch.long), one, one), InvalidType, "floating-point"),
        ((1.0, one, one), InvalidType, "covariance matrix"),
        ((one, one.float(), one), InvalidType, "float32"),
    ],
    ids=[
        "determined",
        "above one",
        "singular x",
        "singular y",
        "negative",
        "skew",
        "shape",
        "nan",
        "nan xy",
        "oblong",
        "integers",
        "number",
        "dtypes",
    ],
)
def test_what_is_no_covariance_is_refused(parts, kind, says):
    with pytest.raises(kind, match=says):
        gaussian_bottleneck(*parts, 2.0)


@pytest.mark.parametrize("noise", [0.0, -1.0, math.nan, torch.zeros(1, 1), torch.eye(2)])
def test_noise_that_is_none_is_refused(noise):
    with pytest.raises(InvalidValue, match="noise"):
        gaussian_information(1.0, noise)


@pytest.mark.parametrize("beta", [0.0, -1.0, math.inf])
def test_a_trade_off_that_is_none_is_refused(beta):
    with pytest.raises(InvalidValue, match="beta"):
        gaussian_bottleneck(one, 0.5 * one, one, beta)
    with pytest.raises(InvalidValue, match="betas"):
        gaussian_bottleneck(one, 0.5 * one, one, 2.0).curve(torch.tensor([beta]))
