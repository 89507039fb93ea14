"""The problems that the tests of this folder share."""

import torch

import mfoc

D = torch.float64
SPIRAL = torch.tensor([[0.0, 1.0], [-1.0, 0.2]], dtype=D)


def lq(horizon=8, **terms):
    """A two-dimensional linear-quadratic problem in discrete time."""
    A, B = torch.tensor([[1.0, 0.1], [-0.1, 0.95]], dtype=D), torch.tensor([[0.0], [0.2]], dtype=D)
    eye = torch.eye(2, dtype=D)
    return mfoc.lq.LinearQuadratic.discrete(A, B, 0.1 * eye, 0.1 * eye[:1, :1], eye, horizon=horizon, **terms)


def grid(points, dims=2, reach=3.0, dtype=D):
    return [torch.linspace(-reach, reach, points, dtype=dtype)] * dims


def square(points=9, reach=1.0):
    axis = torch.linspace(-reach, reach, points, dtype=D)
    return torch.cartesian_prod(axis, axis)


def bumpy(x):
    """A terminal cost that is smooth and no polynomial."""
    return x.square().sum(1) / 2 + 0.3 * (2 * x[:, 0] + x[:, -1]).sin()


def energy(t, x, u, z):
    return (u.square().sum() / 2).expand(len(x))


def spiral(stages, T=0.5):
    """dx = (A x + u) dt, whose value is the Hopf-Lax formula."""
    zeros = [torch.zeros(2, dtype=D)] * stages
    return mfoc.continuous(lambda t, x, u, z: x @ SPIRAL.T + u, lambda x, z: bumpy(x), zeros, running_cost=energy, T=T)


def diffusion(stages, sigma, dims=1, T=0.5):
    """dx = u dt + sigma dW, whose value is the Cole-Hopf formula with r = 1."""
    zeros = [torch.zeros(dims, dtype=D)] * stages
    drift, end = lambda t, x, u, z: u.expand_as(x), lambda x, z: bumpy(x)
    return mfoc.continuous(drift, end, zeros, running_cost=energy, T=T, diffusion=sigma)
