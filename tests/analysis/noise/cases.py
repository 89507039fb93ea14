"""Losses whose gradients, covariance and Hessian are known in closed form."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.architectures import seeded


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers in float64, the same in every run."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Location(nn.Module):
    """f(x) = u - x: with the loss below, the mean of h (u - x)^2 / 2 over entries, a quadratic with noise."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.u = nn.Parameter(start.clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.u - x


def quadratic(out: Tensor, h: Tensor) -> Tensor:
    """sum_j h_j (u - x)_j^2 / 2 of each sample: gradient h (u - x), Hessian diag(h), Sigma = h Cov(x) h."""
    return (h * out.square()).sum(1) / 2


def regression(n: int = 40, d: int = 3, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear network of one output without bias, and data with noise."""
    x = normal(n, d, seed=seed)
    y = x @ normal(d, seed=seed + 1) + 0.5 * normal(n, seed=seed + 2)
    net = seeded(lambda: nn.Linear(d, 1, bias=False))
    return net, x, y[:, None]


def classifier(n: int = 30) -> tuple[nn.Module, Tensor, Tensor]:
    """A small network, and three classes."""
    net = seeded(lambda: nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3)))
    return net, normal(n, 2), torch.arange(n) % 3


def dense_hessian(net: nn.Module, x: Tensor, y: Tensor, loss=F.cross_entropy) -> Tensor:
    """The Hessian of the loss in the parameters, in their order, by torch.func."""
    names, leaves = zip(*((name, p.detach()) for name, p in net.named_parameters()), strict=True)
    sizes = [leaf.numel() for leaf in leaves]

    def value(flat: Tensor) -> Tensor:
        pieces = {n: part.view(p.shape) for n, part, p in zip(names, flat.split(sizes), leaves, strict=True)}
        return loss(torch.func.functional_call(net, pieces, (x,)), y)

    return torch.func.hessian(value)(torch.cat([leaf.flatten() for leaf in leaves]))


def plain_gradients(net: nn.Module, x: Tensor, y: Tensor, loss=F.cross_entropy) -> Tensor:
    """The gradient of each sample's loss, by one backward pass for each ``[n, P]``."""
    free = [p for p in net.parameters() if p.requires_grad]
    rows = [torch.autograd.grad(loss(net(x[i : i + 1]), y[i : i + 1]), free) for i in range(len(x))]
    return torch.stack([torch.cat([leaf.flatten() for leaf in row]) for row in rows])
