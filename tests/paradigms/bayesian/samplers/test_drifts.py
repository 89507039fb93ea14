"""Drifts for the path-integral sampler, against Gaussian integrals."""

import math

import pytest
import torch

import mfoc
from paradigms.bayesian import Drift, GaussianDrift
from tests.oracles import bayesian as oracles
from tests.paradigms.bayesian.targets import COVARIANCE, MEAN
from tests.problems import D


def test_the_gaussian_drift_is_the_gradient_of_the_value():
    """u* = sigma^2 grad log E[gamma / p0_T (X_T) | X_t = x], with the expectation by Gauss-Hermite quadrature."""
    sigma, T, m, c, t = 1.3, 0.8, 0.7, 0.4, 0.3
    drift = GaussianDrift(torch.tensor([m], dtype=D), torch.tensor([[c]], dtype=D), sigma=sigma, T=T)
    x = torch.linspace(-1.5, 1.5, 7, dtype=D).requires_grad_()
    value = oracles.gaussian_mean(
        lambda end: torch.exp(-((end - m) ** 2) / (2 * c) + end**2 / (2 * sigma**2 * T)), x, sigma * math.sqrt(T - t)
    ).log()
    expected = sigma**2 * torch.autograd.grad(value.sum(), x)[0]
    torch.testing.assert_close(drift(torch.tensor(t, dtype=D), x.detach()[:, None])[:, 0], expected, rtol=1e-8, atol=0)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: Drift(2.0), mfoc.InvalidType, "dim is 2.0"),
        (lambda: Drift(2, hidden=0), mfoc.InvalidValue, "hidden is 0"),
        (lambda: Drift(2, layers=-1), mfoc.InvalidValue, "layers is -1"),
        (lambda: Drift(2, clip=-1.0), mfoc.InvalidValue, "clip is -1.0"),
        (lambda: Drift(2, score="yes"), mfoc.InvalidType, "score is 'yes'"),
        (lambda: Drift(2, base=lambda t, x: x), mfoc.InvalidType, "base is a function"),
        (lambda: GaussianDrift(MEAN, COVARIANCE, sigma=0.0), mfoc.InvalidValue, "sigma is 0.0"),
        (lambda: GaussianDrift([0.0, 0.0], COVARIANCE), mfoc.InvalidType, "mean is a list"),
        (lambda: GaussianDrift(MEAN.float(), COVARIANCE), mfoc.InvalidType, "covariance is torch.float64"),
        (lambda: GaussianDrift(MEAN * math.nan, COVARIANCE), mfoc.InvalidValue, "mean holds NaN"),
        (lambda: GaussianDrift(MEAN, COVARIANCE.triu()), mfoc.InvalidValue, "not symmetric"),
        (lambda: GaussianDrift(MEAN, -COVARIANCE), mfoc.InvalidValue, "positive definite"),
        (lambda: GaussianDrift(MEAN, COVARIANCE[:1]), mfoc.InvalidValue, "shapes"),
    ],
)
def test_bad_input_is_refused_with_a_reason(call, error, words):
    with pytest.raises(error, match=words):
        call()
