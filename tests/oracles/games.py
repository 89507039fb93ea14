"""A game of one control shared by all, written out with its law as numbers: what a player pays who plays another."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

STAGES = 4


def swarm_cost(v: Tensor, x: Tensor, means: list[Tensor], spreads: list[Tensor]) -> Tensor:
    """The mean cost of controls v ``[4, 2]`` in ``tests.problems.swarm`` where the law is these numbers."""
    total = torch.zeros((), dtype=x.dtype)
    for t in range(STAGES):
        m, s = means[t], spreads[t]
        total = total + (0.5 * v[t].square().sum() + ((x - m).square() * s).sum(1)).mean()
        x = x + 0.3 * (torch.tanh(m - x) + v[t] * torch.cos(x) + s)
    return total + (x - 2 * means[STAGES]).square().sum(1).mean()


def swarm_law(u: Tensor, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Means and variances of the population that plays u, at each stage."""
    means, spreads = [x.mean(0)], [x.var(0, correction=0)]
    for t in range(STAGES):
        x = x + 0.3 * (torch.tanh(means[t] - x) + u[t] * torch.cos(x) + spreads[t])
        means.append(x.mean(0))
        spreads.append(x.var(0, correction=0))
    return means, spreads


def minimum_of_quadratic(function: Callable[[Tensor], Tensor], like: Tensor) -> tuple[Tensor, Tensor]:
    """The minimiser of a quadratic function, and its value, by one Newton step from zero."""
    zero = torch.zeros_like(like)
    slope = torch.autograd.functional.jacobian(function, zero).reshape(-1)  # type: ignore[no-untyped-call]
    bend = torch.autograd.functional.hessian(function, zero).reshape(len(slope), -1)  # type: ignore[no-untyped-call]
    point = -torch.linalg.solve(bend, slope).reshape(like.shape)
    return point, function(point)
