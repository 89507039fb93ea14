"""Log densities as potentials for the samplers of Pyro."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import HMC, MCMC, NUTS
from torch import nn

import mfoc
from paradigms.bayesian import follmer, log_density, to_potential
from tests.paradigms.bayesian.targets import MEAN, Constant, X, Y
from tests.problems import D, seeded


@pytest.mark.slow
def test_nuts_recovers_a_gaussian_through_the_potential():
    covariance = torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=D)
    law = torch.distributions.MultivariateNormal(torch.tensor([1.0, -2.0], dtype=D), covariance)
    like = {"a": torch.zeros((), dtype=D), "b": torch.zeros((), dtype=D)}
    density = log_density(lambda p: law.log_prob(torch.stack([p["a"], p["b"]], 1)), like=like)
    potential = to_potential(density)
    pyro.set_rng_seed(0)
    mcmc = MCMC(NUTS(potential_fn=potential.potential_fn), 600, 200, initial_params=potential.initial_params)
    mcmc.disable_logging = True
    mcmc.run()
    drawn = potential.posterior(mcmc.get_samples())
    x = torch.stack([drawn["a"], drawn["b"]], 1)
    torch.testing.assert_close(x.mean(0), law.mean, atol=0.2, rtol=0)
    torch.testing.assert_close(torch.cov(x.mT), covariance, atol=0.25, rtol=0)


def test_the_terminal_cost_of_a_problem_as_a_potential():
    problem = mfoc.from_module(seeded(lambda: nn.Sequential(nn.Linear(3, 1)), 0), nn.MSELoss())
    particles = mfoc.Particles(X, Y[:, None])
    potential = to_potential(problem, particles)
    start = {k: v.clone().requires_grad_() for k, v in potential.initial_params.items()}
    controls = [{"weight": start["0.weight"], "bias": start["0.bias"]}]
    total = mfoc.rollout(problem, controls, particles).cost.sum()
    torch.testing.assert_close(potential.potential_fn(start), total)
    mcmc = MCMC(HMC(potential_fn=potential.potential_fn, step_size=0.01), 2, 1, initial_params=potential.initial_params)
    mcmc.run()
    assert potential.posterior(mcmc.get_samples())["0.weight"].shape == (2, 1, 3)


def regression(x, y=None):
    w = pyro.sample("w", dist.Normal(torch.zeros(3, dtype=D), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.HalfNormal(torch.ones((), dtype=D)))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, scale), obs=y)


def test_several_chains_start_apart():
    potential = to_potential(log_density(regression, (X, Y)), chains=3)
    assert potential.initial_params["w"].shape == (3, 3)


def test_the_potential_of_a_path_problem_is_its_cost_and_not_its_target():
    made = follmer(log_density(lambda x: -x.square().sum(1), like=torch.zeros(2, dtype=D)), Constant(MEAN), steps=2)
    potential = to_potential(made.problem, made.population(0))
    cost = mfoc.rollout(made.problem, made.problem.controls, made.population(0)).cost.sum()
    torch.testing.assert_close(potential.potential_fn(made.problem.controls), cost)
    assert to_potential(made).initial_params["x"].shape == (2,)
