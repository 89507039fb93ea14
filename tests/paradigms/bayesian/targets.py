"""What the samplers are tried on: densities whose integral or moments are known, and drifts to steer them by."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

import mfoc
from paradigms.bayesian import log_density
from tests.problems import D, normal, seeded

MEAN = torch.tensor([0.8, -0.4], dtype=D)
COVARIANCE = torch.tensor([[0.6, 0.2], [0.2, 0.3]], dtype=D)
LOG_Z = 1.7


def gaussian(mean=MEAN, covariance=COVARIANCE):
    """Z times a Gaussian density."""
    law = torch.distributions.MultivariateNormal(mean, covariance, validate_args=False)
    return log_density(lambda x: LOG_Z + law.log_prob(x), like=torch.zeros(len(mean), dtype=D))


NARROW = torch.tensor([[1.0, 0.4], [0.4, 0.5]], dtype=D)


def centred(covariance=NARROW):
    precision = torch.linalg.inv(covariance)
    return log_density(lambda x: -0.5 * ((x @ precision.to(x)) * x).sum(1), like=torch.zeros(len(covariance), dtype=D))


def quartic(dim=3):
    return log_density(lambda x: -x.pow(4).sum(1) - 0.5 * x.sum(1).square(), like=torch.zeros(dim, dtype=D))


class Constant(nn.Module):
    """A drift that is the same everywhere."""

    def __init__(self, u):
        super().__init__()
        self.u = nn.Parameter(u.clone())

    def forward(self, t, x):
        return self.u.expand_as(x)


class Wild(nn.Module):
    """Any drift."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, 2)

    def forward(self, t, x):
        return self.net(x).tanh() * (1 + t)


def wild():
    return seeded(Wild, 1)


def at_start(made):
    """What ``evaluate`` takes, with the initial policy."""
    return mfoc.Iterate(0, made.problem.controls, None)


X, TRUE = normal(60, 3, seed=1), torch.tensor([1.0, -0.5, 0.3], dtype=D)
Y = X @ TRUE + normal(60, seed=2)


def conjugate(x, y=None):
    """Bayesian linear regression with unit noise and unit prior."""
    w = pyro.sample("w", dist.Normal(torch.zeros(3, dtype=x.dtype), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal((x * w).sum(-1), 1.0), obs=y)
