"""MAP and Laplace: guides that are points, against Pyro and closed forms."""

from functools import partial

import pytest
import torch

import mfoc
from paradigms.bayesian import predict, variational
from tests.oracles import bayesian as oracles
from tests.problems import normal

pyro = pytest.importorskip("pyro")
dist = pyro.distributions
guides = pyro.infer.autoguide
pytestmark = pytest.mark.usefixtures("double")
X = normal(20, 3, seed=1)


def sgd(lr):
    return mfoc.Gradient(partial(torch.optim.SGD, lr=lr))


@pytest.fixture
def y():
    return X @ torch.tensor([1.0, -2.0, 0.5]) + 0.3 * normal(20, seed=2)


def linear(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 0.3), obs=y)


def coin(y=None):
    p = pyro.sample("p", dist.Beta(3.0, 4.0))
    with pyro.plate("tosses", 10):
        pyro.sample("y", dist.Bernoulli(p), obs=y)


TOSSES = [1.0] * 7 + [0.0] * 3


@pytest.mark.parametrize(
    ("guide", "mode"),
    [
        (guides.AutoDelta, (9 / 15)),  # of Beta(10, 7): (a - 1) / (a + b - 2)
        (guides.AutoLaplaceApproximation, (10 / 17)),  # of its logit, whose density is p^a (1 - p)^b: a / (a + b)
    ],
)
def test_each_point_is_the_mode_in_its_own_coordinates(guide, mode):
    f = variational(coin, (torch.tensor(TOSSES),), guide=guide)
    made = f.readout(f.solve(sgd(1.0), steps=60))
    p = made.median()["p"] if guide is guides.AutoDelta else made.loc.detach().sigmoid()
    assert float(p) == pytest.approx(mode, abs=1e-6)


def test_the_path_of_a_solve_is_that_of_svi_with_autodelta(y):
    def model(x, y):
        s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
        p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ p, s), obs=y)

    f = variational(model, (X, y), guide=guides.AutoDelta)
    with pyro.get_param_store().scope():
        theirs = f.readout(f.problem)
        svi = pyro.infer.SVI(model, theirs, pyro.optim.SGD({"lr": 1e-3 / 20}), pyro.infer.Trace_ELBO())
        for _ in range(10):
            svi.step(X, y)
        expected = theirs.median()
    found = f.readout(f.solve(sgd(1e-3), steps=10)).median()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-12)
    assert float((found["s"] - f.readout(f.problem).median()["s"]).abs()) > 1e-4


def test_the_laplace_approximation_of_a_conjugate_model_is_its_posterior(y):
    mean, precision = oracles.linear_posterior(X, y, 0.3)
    f = variational(linear, (X, y), guide=guides.AutoLaplaceApproximation)
    gaussian = f.readout(f.solve(sgd(0.05), steps=150)).laplace_approximation(X, y)
    law = gaussian.get_posterior()
    torch.testing.assert_close(law.mean, mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(law.covariance_matrix, torch.linalg.inv(precision), rtol=1e-8, atol=1e-12)
    prediction = predict(gaussian, (X, y), samples=2000)
    torch.testing.assert_close(prediction.mean, X @ mean, rtol=0, atol=0.03)


def test_the_laplace_approximation_on_the_logit():
    """Beta(10, 7) in the logit has the curvature (a + b) p (1 - p) at p = a / (a + b)."""
    data = (torch.tensor(TOSSES),)
    f = variational(coin, data, guide=guides.AutoLaplaceApproximation)
    gaussian = f.readout(f.solve(sgd(1.0), steps=60)).laplace_approximation(*data)
    assert float(gaussian.scale) ** -2 == pytest.approx(17 * 10 / 17 * 7 / 17, rel=1e-6)


@pytest.mark.parametrize("guide", [guides.AutoDelta, guides.AutoLaplaceApproximation])
def test_a_point_is_certified(guide, y):
    f = variational(linear, (X, y), guide=guide)
    solution = f.solve(sgd(0.05), steps=150)
    assert f.certify(solution).verdict.sample.name == "MINIMUM"


def test_minibatches_of_a_point_are_unbiased(y):
    f = variational(linear, (X, y), guide=guides.AutoDelta, batch_size=5)
    whole, (slope,) = mfoc.evaluate(f.problem, f.problem.controls, next(iter(f.population.epoch())))
    parts = [mfoc.evaluate(f.problem, f.problem.controls, f.population(k)) for k in range(4)]
    torch.testing.assert_close(sum(value for value, _ in parts) / 4, whole)
    torch.testing.assert_close(sum(u["w_unconstrained"] for _, (u,) in parts) / 4, slope["w_unconstrained"])
