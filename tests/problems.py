"""A small catalogue of problems: each function returns (problem, particles), seeded and in float64."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

import mfoc

D = torch.float64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=D)


def seeded(make, seed: int = 0) -> nn.Module:
    """A module whose initial weights are the same in every run, in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().double()


def labels(n: int, classes: int) -> torch.Tensor:
    return torch.arange(n) % classes


def mlp_net() -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 2)))


def mlp():
    return mfoc.from_module(mlp_net(), F.cross_entropy), mfoc.Particles(normal(7, 3), labels(7, 2))


def conv_net() -> nn.Module:
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2 * 9, 3)
        )
    )


def conv():
    return mfoc.from_module(conv_net(), F.cross_entropy), mfoc.Particles(normal(6, 1, 6, 6), labels(6, 3))


def linear_quadratic():
    a, b = torch.eye(2, dtype=D) + 0.1 * normal(2, 2, seed=1), normal(2, 1, seed=2)
    problem = mfoc.Problem(
        lambda t, x, u, z: x @ (a.mT + u["K"].mT @ b.mT) + b[:, 0] * u["k"],
        lambda x, z: x.square().sum(1),
        [{"K": 0.1 * normal(1, 2, seed=3 + t), "k": normal(1, seed=9 + t)} for t in range(4)],
        running_cost=lambda t, x, u, z: 0.3 * x.square().sum(1) + 0.1 * (x @ u["K"].mT + u["k"]).square().sum(1),
        kind=lambda t: "step",
    )
    return problem, mfoc.Particles(normal(5, 2, seed=4))


def interacting():
    def drift(t, x, u, z):
        return u * (x.mean(0) - x) + torch.tanh(x) * (1 + t)

    problem = mfoc.continuous(
        drift,
        lambda x, z: (x - z).square().sum(1) + (x - x.mean(0)).square().sum(1),
        [0.3 * normal(2, seed=5 + t) for t in range(3)],
        running_cost=lambda t, x, u, z: (x.var(0) * u).sum().expand(len(x)) + x.prod(1).sin(),
        scheme=mfoc.heun,
    )
    return problem, mfoc.Particles(normal(6, 2, seed=1), normal(6, 2, seed=2))


def pytrees():
    """States {"q", "nested": (v,), "token"} with an integer leaf, controls {"gain", "bias": [b]}."""

    def dynamics(t, x, u, z):
        q, (v,), token = x["q"], x["nested"], x["token"]
        force = u["gain"][token] * torch.sin(q) + u["bias"][0]
        return {"q": q + 0.2 * v, "nested": (v + 0.2 * force,), "token": (token + 1) % 3}

    problem = mfoc.Problem(
        dynamics,
        lambda x, z: (x["q"] - z["goal"]).square().sum(1) + x["nested"][0].square().sum(1),
        [{"gain": normal(3, 1, seed=t), "bias": [normal(2, seed=20 + t)]} for t in range(3)],
        running_cost=lambda t, x, u, z: 0.1 * u["bias"][0].square().sum() + 0.2 * x["nested"][0].square().sum(1),
    )
    state = {"q": normal(5, 2, seed=1), "nested": (normal(5, 2, seed=2),), "token": torch.arange(5) % 3}
    return problem, mfoc.Particles(state, {"goal": normal(5, 2, seed=3)})


def tied():
    problem = mfoc.continuous(
        lambda t, x, u, z: torch.tanh(x @ u["W"].mT) + u["b"],
        lambda x, z: (x - z).square().sum(1),
        {"W": normal(2, 2, seed=1), "b": normal(2, seed=2)},
        running_cost=lambda t, x, u, z: (u["W"] @ u["b"]).square().sum() + x.square().sum(1),
        horizon=4,
        schedule=mfoc.tied,
        scheme=mfoc.rk4,
    )
    return problem, mfoc.Particles(normal(6, 2, seed=3), normal(6, 2, seed=4))


def batch_norm_net() -> nn.Module:
    return seeded(
        lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2), nn.BatchNorm1d(2))
    )


def batch_norm():
    return mfoc.from_module(batch_norm_net(), F.cross_entropy), mfoc.Particles(normal(8, 3), labels(8, 2))


def decayed():
    net = seeded(
        lambda: nn.Sequential(
            nn.Linear(3, 4), *(mfoc.networks.Residual(nn.Sequential(nn.Linear(4, 4), nn.Tanh())) for _ in range(3))
        )
    )
    problem = mfoc.from_module(net, nn.MSELoss(), running_cost=mfoc.weight_decay(0.1))
    return problem, mfoc.Particles(normal(7, 3), normal(7, 4, seed=1))


CATALOGUE = {f.__name__: f for f in (mlp, conv, linear_quadratic, interacting, pytrees, tied, batch_norm, decayed)}
INTERACTING = ("interacting", "batch_norm")


def leaves(tree) -> list[torch.Tensor]:
    return torch.utils._pytree.tree_leaves(tree)


def same_bits(left, right) -> bool:
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(leaves(left), leaves(right), strict=True)
    )


def distance(left, right) -> float:
    """Largest difference between the leaves of two trees."""
    gaps = [(a - b).detach().abs().max() for a, b in zip(leaves(left), leaves(right), strict=True) if a.numel()]
    return float(torch.stack([gap.double() for gap in gaps]).max())
