"""Conjugate posteriors through Pyro by the samplers: moments and evidence in closed form."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch

import mfoc
from paradigms.bayesian import AdamRule, CrossEntropy, Drift, follmer, langevin, log_density, sample, svgd
from tests.oracles import bayesian as oracles
from tests.paradigms.bayesian.targets import X, Y, conjugate
from tests.problems import D

FLIPS = torch.tensor([1.0] * 7 + [0.0] * 3, dtype=D)
POSTERIOR = torch.distributions.Beta(torch.tensor(9.0, dtype=D), torch.tensor(6.0, dtype=D))


def coin(y):
    p = pyro.sample("p", dist.Beta(torch.tensor(2.0, dtype=D), 3.0))
    with pyro.plate("flips", len(y)):
        pyro.sample("y", dist.Bernoulli(p), obs=y)


def check(p, effective):
    """Mean and variance within four standard errors, for so many independent draws."""
    mean, variance = float(POSTERIOR.mean), float(POSTERIOR.variance)
    kurtosis = 3 + 6 * ((9 - 6) ** 2 * 16 - 9 * 6 * 17) / (9 * 6 * 17 * 18)  # of Beta(9, 6)
    assert float(p.mean()) == pytest.approx(mean, abs=4 * math.sqrt(variance / effective))
    assert float(p.var()) == pytest.approx(variance, abs=4 * variance * math.sqrt((kurtosis - 1) / effective))


def test_mala_draws_from_the_beta_posterior():
    made = langevin(log_density(coin, (FLIPS,)), step=0.3, steps=50, particles=500, method="mala", seed=3)
    draws = sample(made, steps=150, burn_in=50, thin=25)
    check(draws.posterior()["p"], effective=1000)
    assert draws.acceptance > 0.6


def test_the_evidence_of_a_coin():
    made = follmer(log_density(coin, (FLIPS,)), Drift(1, hidden=16).double(), steps=20, seed=2)
    solver = CrossEntropy(mfoc.Gradient(partial(torch.optim.Adam, lr=5e-3)), every=30, paths=400, particles=512)
    evidence = made.evaluate(made.solve(solver, steps=90), n=4000)
    assert evidence.log_z == pytest.approx(oracles.log_beta(9, 6) - oracles.log_beta(2, 3), abs=4 * evidence.error)
    assert evidence.error < 0.02
    check(evidence.posterior()["p"], effective=4000 * evidence.ess)


@pytest.mark.parametrize("method", ["ula", "mala", "svgd"])
def test_a_conjugate_regression_through_pyro(method):
    density = log_density(conjugate, (X, Y))
    mean, precision = oracles.linear_posterior(X, Y, 1.0)
    covariance = torch.linalg.inv(precision)
    if method == "svgd":
        drawn = sample(svgd(density, step=0.02, particles=100, rule=AdamRule()), steps=500).x[-1]
    else:
        drawn = sample(langevin(density, step=0.004, particles=300, method=method), steps=300, burn_in=100, thin=20)
        drawn = drawn.posterior()["w"]
    torch.testing.assert_close(drawn.mean(0), mean, atol=0.02, rtol=0)
    # SVGD with few particles is too narrow, ULA too wide by h / (2 v).
    torch.testing.assert_close(drawn.var(0), covariance.diagonal(), atol=0, rtol=0.3 if method == "svgd" else 0.2)
