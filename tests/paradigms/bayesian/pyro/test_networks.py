"""Networks as Pyro models: from a likelihood and a prior, and from a posterior."""

from functools import partial

import pytest
import torch
from torch import nn

import mfoc
from paradigms.bayesian import variational
from tests.problems import normal, seeded

pyro = pytest.importorskip("pyro")
dist = pyro.distributions


def adam(lr, decay=1.0):
    return mfoc.Gradient(partial(torch.optim.Adam, lr=lr), lr_schedule=lambda k: decay**k)


pytestmark = pytest.mark.usefixtures("double")


@pytest.fixture
def data():
    x = normal(20, 3, seed=1)
    return x, x @ torch.tensor([1.0, -2.0, 0.5]) + 0.3 * normal(20, seed=2)


def net():
    return seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))


@pytest.mark.parametrize("likelihood", ["known", "learned", "categorical"])
def test_a_network_posterior_is_a_guide(likelihood, data):
    x, y = data[0], normal(20, 2, seed=5)
    y = torch.arange(20) % 2 if likelihood == "categorical" else y
    kind = "categorical" if likelihood == "categorical" else "gaussian"
    noise = 0.4 if likelihood == "known" else None
    f = variational(net(), (x, y), likelihood=kind, noise=noise, samples=16)
    solution = f.solve(adam(0.02), steps=20)
    p = f.readout(solution)
    drawn = pyro.infer.Predictive(p.model, guide=p, num_samples=6)(x[:5])
    assert drawn["obs"].shape == ((6, 5) if likelihood == "categorical" else (6, 5, 2))
    for name, value in p.mean.items():
        torch.testing.assert_close(p.guide.median()[f"net.{name}"].detach(), value)
    again = pyro.infer.Predictive(p.model, posterior_samples=p.samples(7, seed=2), return_sites=["_RETURN"])(x)
    outputs = p.outputs(x, 7, seed=2)
    torch.testing.assert_close(again["_RETURN"], outputs[0] if likelihood == "learned" else outputs)
    many = variational(net(), (x, y), likelihood=kind, noise=noise, samples=256, kl="sampled")
    costs = mfoc.rollout(many.problem, solution.controls, many.population(9)).cost
    with pyro.poutine.seed(rng_seed=0):
        loss = pyro.infer.Trace_ELBO(num_particles=64).loss(p.model, p, x, y) / 20
    assert loss == pytest.approx(float(costs.mean()), abs=5 * float(costs.std()) / 8)
    svi = pyro.infer.SVI(p.model, p, pyro.optim.Adam({"lr": 1e-2}), pyro.infer.Trace_ELBO())
    svi.step(x, y)


def regression_posterior(scale):
    x = normal(11, 3).float()
    net = seeded(lambda: nn.Sequential(nn.Linear(3, 1))).float()
    formulation = variational(net, (x, scale * x[:, :1]), likelihood="gaussian")
    return x, formulation.readout(formulation.solve(adam(1e-2), steps=3))


def test_two_posteriors_keep_their_own_noise():
    (x, quiet), (_, loud) = regression_posterior(1), regression_posterior(100)
    pyro.clear_param_store()
    with pyro.get_param_store().scope():
        for posterior in (quiet, loud):
            scale = pyro.poutine.trace(posterior.model).get_trace(x).nodes["obs"]["fn"].base_dist.scale
            assert torch.allclose(scale.flatten()[0], posterior.observation_noise.flatten()[0])
