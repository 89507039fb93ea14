"""One reader of priors: every door takes the same and refuses the same."""

import math

import pytest
import torch
from torch import nn

import mfoc
from paradigms.bayesian import as_model, log_density, variational
from tests.problems import D, normal, seeded

pyro = pytest.importorskip("pyro")
dist = pyro.distributions

X, Y = normal(9, 3, seed=1), normal(9, 2, seed=2)
GAUSSIAN = {"likelihood": "gaussian", "noise": 0.5}


def net():
    return seeded(lambda: nn.Sequential(nn.Linear(3, 2)), 3)


# ---- the doors: each gives the log prior of the network's own weights, up to one constant


def of_density(density):
    weights = torch.cat([p.detach().reshape(-1) for p in net().parameters()])
    return float(density(weights[None]))


def by_log_density(prior):
    return of_density(log_density(net(), (X, Y), prior=prior, **GAUSSIAN))


def by_as_model(prior):
    return of_density(log_density(as_model(net(), prior=prior, **GAUSSIAN), (X, Y)))


def by_problem(prior):
    return of_density(log_density(mfoc.from_module(net(), nn.MSELoss()), mfoc.Particles(X, Y), prior=prior))


def by_variational(prior):
    """At draws that do not move from the weights: tau (log q - log p)."""
    f = variational(net(), (X, Y), prior=prior, tau=1.0, kl="sampled", init_scale=1e-9, **GAUSSIAN)
    cloud = f.population(0)
    return -float(f.problem.running_cost(0, cloud.state, f.problem.controls[0], cloud.data))


DOORS = [by_variational, by_log_density, by_as_model, by_problem]


def by_name(name, w):
    return dist.Normal(0.1, 2.0) if name.endswith("bias") else dist.Laplace(0.0, 1 / math.sqrt(w.shape[-1]))


ACCEPTED = {
    "a normal of torch": torch.distributions.Normal(0.3, 2.0),
    "a normal of Pyro": dist.Normal(0.3, 2.0),
    "another law": torch.distributions.Laplace(0.1, 1.5),
    "a law of its own dtype": dist.StudentT(torch.tensor(3.0, dtype=D), 0.0, 1.0),
    "one for each weight": lambda name, w: dist.Normal(torch.zeros_like(w), 1 + torch.rand_like(w).round()),
    "independent ones": lambda name, w: dist.Normal(0.3, 2.0).expand(w.shape).to_event(w.dim()),
    "one for each parameter": by_name,
    "of a column": lambda name, w: torch.distributions.Normal(torch.zeros(w.shape[-1]), 0.5),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("case", ACCEPTED)
def test_every_door_takes_a_prior_alike(case, door):
    prior, named, expected = ACCEPTED[case], dict(net().named_parameters()), 0.0
    torch.manual_seed(0)
    one = isinstance(prior, torch.distributions.Distribution)
    fixed = {name: prior if one else prior(name, w) for name, w in named.items()}
    for name, w in named.items():
        law = getattr(fixed[name], "base_dist", fixed[name])
        expected += float((law.log_prob(w.detach()) - torch.distributions.Normal(0.0, 1.0).log_prob(w.detach())).sum())
    standard = torch.distributions.Normal(0.0, 1.0)
    assert door(lambda name, w: fixed[name]) - door(standard) == pytest.approx(expected, abs=1e-5)
    if one:
        assert door(prior) == pytest.approx(door(lambda name, w: prior), rel=1e-12)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("prior", "error", "words"),
    [
        (1.0, mfoc.InvalidType, "expected a distribution such as"),
        (lambda name, w: 1.0, mfoc.InvalidType, "prior of '0.weight' is a float"),
        (dist.HalfNormal(1.0), mfoc.InvalidValue, "real numbers, one for each weight"),
        (dist.MultivariateNormal(torch.zeros(3), torch.eye(3)), mfoc.InvalidValue, "real numbers, one for each weight"),
        (dist.Normal(torch.zeros(9), 1.0), mfoc.InvalidValue, r"shape \(9,\); the parameter has \(2, 3\)"),
        (dist.Normal(0.0, math.nan, validate_args=False), mfoc.InvalidValue, "NaN or infinite at the initial weights"),
    ],
)
def test_every_door_refuses_the_same_priors(prior, error, words, door):
    with pytest.raises(error, match=words):
        door(prior)


def test_a_law_that_pyro_does_not_have_is_refused_by_a_pyro_model():
    class Own(torch.distributions.Normal):
        pass

    scale = torch.distributions.AffineTransform(0.0, 2.0)
    made_of_another = torch.distributions.TransformedDistribution(torch.distributions.Normal(0.0, 1.0), [scale])
    for prior in (Own(0.0, 1.0), made_of_another):
        with pytest.raises(mfoc.InvalidValue, match="cannot be made one of Pyro's"):
            as_model(net(), prior=prior, **GAUSSIAN)
