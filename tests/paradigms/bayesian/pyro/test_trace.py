"""Pyro models seen from outside: the user's own state is left alone, and what has no density is refused."""

import pytest
import torch

import mfoc
from paradigms.bayesian import log_density, variational
from tests.problems import normal

pyro = pytest.importorskip("pyro")
dist = pyro.distributions
Y = normal(10, seed=2)
pytestmark = pytest.mark.usefixtures("double")


def coin(y):
    p = pyro.sample("p", dist.Beta(2.0, 2.0))
    with pyro.plate("flips", len(y)):
        pyro.sample("y", dist.Bernoulli(p), obs=y)


@pytest.mark.parametrize("checked", [False, True])
@pytest.mark.parametrize("make", [log_density, variational])
def test_the_flag_of_torch_is_left_as_it_was(make, checked):
    before = torch.distributions.Distribution._validate_args
    try:
        torch.distributions.Distribution.set_default_validate_args(checked)
        make(coin, (torch.ones(5),))
        assert torch.distributions.Distribution._validate_args is checked
    finally:
        torch.distributions.Distribution.set_default_validate_args(before)


def discrete(y):
    z = pyro.sample("z", dist.Bernoulli(0.5))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


@pytest.mark.parametrize("make", [log_density, variational])
def test_discrete_latents_are_refused_alike(make):
    with pytest.raises(mfoc.InvalidValue, match="'z' is discrete"):
        make(discrete, (Y,))


@pytest.mark.parametrize("make", [log_density, variational])
def test_a_latent_on_a_sphere_is_refused(make):
    def spherical(y):
        direction = pyro.sample("direction", dist.ProjectedNormal(torch.ones(2)))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(direction[0], 1.0), obs=y)

    with pytest.raises(mfoc.InvalidValue, match=r"'direction' .* reparametrise"):
        make(spherical, (Y,))
