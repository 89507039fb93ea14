"""Where particles start: at draws of the prior, where there is one, or uniformly."""

import pyro
import pytest
import torch
from torch import nn

import mfoc
from paradigms.bayesian import langevin, log_density, svgd
from tests.problems import D, normal

dist = pyro.distributions
pytestmark = pytest.mark.usefixtures("double")
Y = normal(6, seed=1)


def model(y):
    """Latents on the line, on the half-line, and in an interval that depends on the second."""
    w = pyro.sample("w", dist.Normal(3.0, 0.5).expand([2]).to_event(1))
    top = pyro.sample("top", dist.LogNormal(1.0, 0.2))
    pyro.sample("below", dist.Uniform(torch.zeros(()), top))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(w.sum(), 1.0), obs=y)


@pytest.mark.parametrize("method", [langevin, svgd])
def test_particles_of_a_pyro_model_start_from_its_prior(method):
    density, state = log_density(model, (Y,)), torch.get_rng_state()
    x = method(density, step=0.1, particles=2000, init="prior", seed=3, steps=1).start
    assert torch.equal(state, torch.get_rng_state())
    named = density.named(x)
    # The laws of the prior, not of the posterior: means within five standard errors, and a uniform share.
    assert float((named["w"].mean(0) - 3).abs().max()) < 5 * 0.5 / 2000**0.5
    assert float((named["top"].log().mean() - 1).abs()) < 5 * 0.2 / 2000**0.5
    share = named["below"] / named["top"]
    assert float((share.mean() - 0.5).abs()) < 5 * (1 / 12) ** 0.5 / 2000**0.5
    again, other = (density.prior(5, seed) for seed in (3, 4))
    assert torch.equal(density.prior(5, 3), again)
    assert not torch.equal(again, other)


def test_parameters_are_those_the_density_was_made_with():
    def shifted(y):
        loc = pyro.param("loc", torch.tensor(0.0))
        w = pyro.sample("w", dist.Normal(loc, 1e-3))
        pyro.sample("y", dist.Normal(w, 1.0).expand([len(y)]).to_event(1), obs=y)

    with pyro.get_param_store().scope():
        pyro.param("loc", torch.tensor(7.0))
        density = log_density(shifted, (Y,))
    assert float((density.prior(4, 0) - 7).abs().max()) < 0.1


def test_networks_and_problems_start_from_the_prior_they_were_given():
    x = normal(5, 3)
    network = log_density(
        nn.Linear(3, 1), (x, x.sum(1)), likelihood="gaussian", noise=1.0, prior=dist.Normal(9.0, 1e-3)
    )
    problem = mfoc.Problem(
        lambda t, x, u, z: x + u["a"], lambda x, z: x.square().sum(1), [{"a": torch.zeros(3, dtype=D)}]
    )
    gibbs = log_density(problem, mfoc.Particles(x), prior=torch.distributions.Normal(9.0, 1e-3))
    for density in (network, gibbs):
        start = svgd(density, step=0.1, particles=3, init="prior").start
        assert float((start - 9).abs().max()) < 0.1
        uniform = svgd(density, step=0.1, particles=30, init="uniform").start
        assert float(uniform.abs().max()) < 2


def test_without_init_nothing_changes():
    density = log_density(model, (Y,))
    assert torch.equal(svgd(density, step=0.1, particles=4, seed=2).start, density.initial(4, 2))
    assert torch.equal(density.initial(4, 2), svgd(density, step=0.1, particles=4, seed=2, init="uniform").start)


def test_bad_input_is_refused_with_a_reason():
    bare = log_density(lambda x: -x.square().sum(1), like=torch.zeros(2))
    for words, options in (
        ("has none that can be drawn", {"init": "prior"}),
        ("'posterior'", {"init": "posterior"}),
        ("leave one of them out", {"init": "prior", "particles": normal(3, 2)}),
    ):
        with pytest.raises(mfoc.InvalidValue, match=words):
            svgd(bare, step=0.1, **{"particles": 3, **options})
