"""Populations of quadratic costs 1/2 (u - c)' A (u - c), whose residual, gap and lowest eigenvalue are known.

Their optimum is u = 0: A and c are independent, and E c = 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mfoc.certificate.intervals import (
    FOLDS,
    GROUPS,
    Measure,
    eigenvalue_interval,
    fold_of_group,
    gap_interval,
    residual_interval,
)

D = torch.float64


@dataclass(frozen=True)
class Population:
    """Quadratic costs in ``d`` dimensions, of N particles each time."""

    d: int
    law: str = "gauss"  # of the centres
    curvature: str = "constant"

    @property
    def mean(self) -> Tensor:
        """E A."""
        if self.curvature == "decaying":
            return torch.diag(torch.linspace(0, -3, self.d, dtype=D).exp())
        return torch.diag(torch.linspace(1, 2, self.d, dtype=D))

    def control(self, distance: float, particles: int) -> Tensor:
        """A control whose gap is about ``distance``^2 / 2 times what the mean of one direction is worth."""
        u = torch.randn(self.d, dtype=D, generator=torch.Generator().manual_seed(7))
        return u * distance / (particles * (u @ self.mean @ u)).sqrt()

    def truth(self, u: Tensor) -> tuple[float, float, float]:
        slope = self.mean @ u
        lowest = torch.linalg.eigvalsh(self.mean)[0]
        return float(slope.norm()), float(u @ slope) / 2, float(lowest)

    def draw(self, samples: int, particles: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        """A ``[samples, N, d, d]`` and c ``[samples, N, d]``."""
        rng = torch.Generator().manual_seed(seed)
        shape = (samples, particles, self.d)

        def normal(*size: int) -> Tensor:
            return torch.randn(*size, dtype=D, generator=rng)

        root = self.mean.sqrt()
        if self.curvature == "wishart":  # random eigenvectors, 2 d degrees of freedom
            factor = normal(*shape, max(2 * self.d, 8)) / math.sqrt(max(2 * self.d, 8))
            matrices = root @ (factor @ factor.mT) @ root
        elif self.curvature == "chi2":  # the eigenvalues' law is skewed: chi2 with 8 degrees over 8
            matrices = torch.diag_embed((normal(*shape, 8) ** 2).mean(-1)) * self.mean
        else:
            matrices = self.mean.expand(*shape, self.d)
        centres = normal(*shape) if self.law == "gauss" else self._skewed(rng, shape)
        return matrices, centres

    def _skewed(self, rng: torch.Generator, shape: tuple[int, ...]) -> Tensor:
        if self.law == "exponential":
            return -torch.rand(shape, dtype=D, generator=rng).log() - 1
        chi = (torch.randn(*shape, 8, dtype=D, generator=rng) ** 2).sum(-1)  # chi2 with 8 degrees: skewness 1
        return (chi - 8) / 4


def certificates(
    population: Population,
    particles: int,
    u: Tensor | None,
    samples: int,
    *,
    groups: int = GROUPS,
    folds: int = FOLDS,
    seed: int = 0,
) -> list[tuple[Measure, Measure, Measure]]:
    """Residual, gap and lowest eigenvalue of many samples; at each sample's own minimiser where u is None."""
    matrices, centres = population.draw(samples, particles, seed)
    groups = min(groups, particles)
    group = torch.arange(particles) % groups
    member = torch.nn.functional.one_hot(group, groups).to(D).mT
    weights = member.sum(1) / particles
    member = member / member.sum(1, keepdim=True)
    a = torch.einsum("kn,snij->skij", member, matrices)
    b = torch.einsum("kn,snij,snj->ski", member, matrices, centres)
    fold = fold_of_group(groups, folds)
    left_out = torch.stack([weights] + [weights * (fold != j) for j in range(int(fold.max()) + 1)])  # [1 + J, K]
    left_out = left_out / left_out.sum(1, keepdim=True)
    means = torch.einsum("fk,skij->sfij", left_out, a)
    minimisers = torch.linalg.solve(means, torch.einsum("fk,ski->sfi", left_out, b)) if groups > 1 else None
    if minimisers is None:
        means = means[:, :1]
        minimisers = torch.linalg.solve(means, b)
    values, vectors = torch.linalg.eigh(means)
    vectors = vectors[..., 0]  # [S, 1 + J, d]
    judged = torch.einsum("sfi,skil,sfl->sfk", vectors, a, vectors)

    def cost(v: Tensor) -> Tensor:
        return torch.einsum("sfi,skil,sfl->sfk", v, a, v) / 2 - torch.einsum("sfi,ski->sfk", v, b)

    at = minimisers[:, :1] if u is None else u.expand(samples, 1, -1)
    slopes = torch.einsum("skil,sl->ski", a, at[:, 0]) - b
    falls = cost(at) - cost(minimisers)
    crossed = judged[:, 1:][:, fold, torch.arange(groups)] if groups > 1 else judged[:, 0]
    d = population.d
    return [
        (
            residual_interval(slopes[s] @ slopes[s].mT, weights, dimension=d),
            gap_interval(falls[s, 0], falls[s, 1:], fold, weights, dimension=d),
            eigenvalue_interval(values[s, 0, 0], judged[s, 0], crossed[s], 0.0, weights, folds=folds, dimension=d),
        )
        for s in range(samples)
    ]


def covered(measure: Measure, truth: float) -> bool:
    slack = 1e-12 * abs(truth)
    return measure.low <= truth + slack and truth - slack <= measure.high
