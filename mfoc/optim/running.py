"""What an optimiser learns of each coordinate as it goes: curvature and noise, by a running regression.

Of the gradient g on the weight x, coordinate by coordinate: where f = a/2 (x - b)^2 is seen through noise of variance
Sigma, a = cov(g, x) / var(x) and Sigma = var(g) (Li, Tai & E 2017, arXiv:1511.06251, sec. 4). Averages forget at a rate
of their own, slowly where the gradient is mostly noise: the decay beta is 0.9 + 0.09 Sigma / (E[g]^2 + Sigma).

What is done here is done to a tensor, or to ``Many`` of them at once.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

TINY = 1e-30  # floors a variance: 0/0 is 0, and a coordinate that has gone to sleep is not slow to compute with

Values: TypeAlias = Any  # a Tensor, or Many


class Running(NamedTuple):
    """Exponential averages, each shaped as the weights.

    Attributes:
        gradient_mean: E[g].
        weight_mean: E[x].
        gradient_variance: Sigma = var(g).
        weight_variance: var(x).
        covariance: cov(g, x).
        forgetting: 1 - beta, the weight of what is seen next.
    """

    gradient_mean: Values
    weight_mean: Values
    gradient_variance: Values
    weight_variance: Values
    covariance: Values
    forgetting: Values


def begun(weight: Tensor) -> dict[str, Tensor]:
    """The averages of a weight that has seen nothing: zeros, which are forgotten at beta = 0.9."""
    zeros = {name: torch.zeros_like(weight) for name in Running._fields}
    return {**zeros, "forgetting": torch.full_like(weight, 0.1)}


def observe(seen: Running, x: Values, g: Values) -> None:
    """Takes one more weight and gradient into all averages but the rate at which they forget.

    Deviations d are from the old means: S <- beta (S + (1 - beta) d d'), the covariance under the weights of the means.
    """
    off_g, off_x = g - seen.gradient_mean, x - seen.weight_mean
    step_g, step_x = off_g * seen.forgetting, off_x * seen.forgetting
    seen.gradient_mean.add_(step_g)
    seen.weight_mean.add_(step_x)
    seen.gradient_variance.addcmul_(step_g, off_g)
    seen.weight_variance.addcmul_(step_x, off_x)
    seen.covariance.addcmul_(step_g, off_x)
    for moment in (seen.gradient_variance, seen.weight_variance, seen.covariance):
        moment.addcmul_(moment, seen.forgetting, value=-1.0)
    seen.gradient_variance.clamp_(TINY)
    seen.weight_variance.clamp_(TINY)


def curvature(seen: Running) -> Values:
    """The slope of the regression of g on x, a = cov(g, x) / var(x)."""
    return seen.covariance / seen.weight_variance


def noisiness(seen: Running) -> Values:
    """Sigma / (E[g]^2 + Sigma), between 0 and 1."""
    second = seen.gradient_mean * seen.gradient_mean
    second.add_(seen.gradient_variance)
    return seen.gradient_variance / second


def forget(seen: Running, noisy: Values) -> None:
    """Sets the rate of forgetting, 1 - beta = 0.1 - 0.09 Sigma / (E[g]^2 + Sigma). Overwrites ``noisy``."""
    seen.forgetting.copy_(noisy.mul_(-0.09).add_(0.1))
