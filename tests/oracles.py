"""What several tests compare against: loops, recursions and formulas written out by hand, plain and slow.

An oracle shares no code with what it checks, beyond the problem's own functions; its docstring names its source.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

# ---- Bayesian learning: conjugate posteriors, Gaussian integrals, the direction of SVGD


def linear_posterior(x: Tensor, y: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """Mean ``[d]`` and precision ``[d, d]`` of w in y = x w + noise e, w ~ N(0, I): Bishop (2006), eq. (3.53)."""
    precision = x.mT @ x / noise**2 + torch.eye(x.shape[1], dtype=x.dtype)
    return torch.linalg.solve(precision, x.mT @ y / noise**2), precision


def with_offset(x: Tensor) -> Tensor:
    """Inputs ``[N, d]`` with a column of ones, for a linear model whose last weight is its bias."""
    return torch.cat([x, torch.ones_like(x[:, :1])], 1)


def log_beta(a: float, b: float) -> float:
    """The log of the beta function: a coin with prior Beta(a, b) has evidence B(a + heads, b + tails) / B(a, b)."""
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def gaussian_mean(function: Callable[[Tensor], Tensor], mean: Tensor, scale: float, nodes: int = 60) -> Tensor:
    """E f(mean + scale xi), xi ~ N(0, 1), for each mean ``[n]``, by Gauss-Hermite quadrature: ``[n]``."""
    at, weights = (torch.as_tensor(part, dtype=mean.dtype) for part in np.polynomial.hermite_e.hermegauss(nodes))
    return (function(mean[:, None] + scale * at) * weights / weights.sum()).sum(1)


def stein_direction(x: Tensor, score: Tensor, h: float | Tensor) -> Tensor:
    """The direction of SVGD with the kernel exp(-|x - y|^2 / h), with two loops: Liu & Wang (2016), eq. (8)."""
    n, phi = len(x), torch.zeros_like(x)
    for i in range(n):
        for j in range(n):
            k = torch.exp(-(x[j] - x[i]).square().sum() / h)
            phi[i] += k * score[j] - 2 / h * (x[j] - x[i]) * k
    return phi / n
