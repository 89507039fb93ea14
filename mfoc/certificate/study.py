"""What a certificate measures of one block of controls, with bootstrap intervals over groups of particles."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mfoc.certificate.lanczos import Lowest, lowest_eigenpair
from mfoc.derivatives import gradients
from mfoc.frozen import Block
from mfoc.minimisers import Minimiser

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measure:
    """One quantity at one stage.

    Attributes:
        value: its value on the particles given.
        low, high: bootstrap interval over groups of particles, stretched to hold ``value``. For the residual: what it
            would be on other samples of as many particles, so that at a minimiser of this sample ``high`` is its
            sampling noise. For gap and curvature: of E [H(u) - H(v)] and of w' E d2H/du2 w, at the minimiser v and
            the eigenvector w of this sample, which understates the spread where they depend much on the sample.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:9.2e} [{self.low:9.2e}, {self.high:9.2e}]"


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """Resamples groups of particles."""

    replicates: int
    confidence: float
    generator: torch.Generator

    def weights(self, groups: int, like: Tensor) -> Tensor:
        """How often each group is drawn in each replicate, over ``groups``: ``[replicates, groups]``."""
        shape = (self.replicates, groups)
        drawn = torch.randint(groups, shape, generator=self.generator, device="cpu")
        ones = torch.ones(shape, device="cpu")
        return torch.zeros(shape, device="cpu").scatter_add_(1, drawn, ones).to(like) / groups

    def measure(self, value: Tensor, replicates: Tensor) -> Measure:
        """The quantity with the interval of its replicates ``[replicates]``."""
        tail = (1 - self.confidence) / 2
        ends = torch.tensor([tail, 1 - tail], dtype=torch.float64).to(value.device)
        low, high = torch.quantile(replicates.double(), ends).tolist()
        return Measure(float(value), min(low, float(value)), max(high, float(value)))


Row = tuple[Measure, Measure, Measure, float]


@dataclass(frozen=True, eq=False)
class Study:
    """Measures one block after another."""

    members: Tensor  # [K, N], row k averages over group k
    bootstrap: Bootstrap
    inner: Minimiser
    lanczos: int
    generator: torch.Generator

    @torch.enable_grad()
    def block(self, block: Block) -> tuple[list[Row], float]:
        """The measures of each row of a block, and the backward passes they took."""
        weights = self.bootstrap.weights(len(self.members), block.start)
        residuals = self._residuals(block, weights)
        lowest = self._lowest(block)
        curvatures = self._curvatures(block, weights, lowest)
        gaps, evaluations = self._gaps(block, weights, lowest)
        rows = list(zip(residuals, gaps, curvatures, lowest.error.tolist(), strict=True))
        return rows, len(self.members) + evaluations + 2 * lowest.products + 5

    def _residuals(self, block: Block, weights: Tensor) -> list[Measure]:
        point = block.start.clone().requires_grad_()
        means = block.per_particle(point) @ self.members.mT  # [G, K]
        last = means.shape[1] - 1
        slopes = torch.stack(
            [gradients(means[:, k].sum(), [point], retain_graph=k < last)[0] for k in range(means.shape[1])], 1
        )  # [G, K, n]
        sizes = self._sizes()
        drawn = _resampled(weights, sizes)
        return [self.bootstrap.measure(_length(g, sizes[None])[0], _length(g, drawn)) for g in slopes @ slopes.mT]

    def _gaps(self, block: Block, weights: Tensor, lowest: Lowest) -> tuple[list[Measure], int]:
        # From a saddle or a maximum of H no slope leads away: start a little down the direction of negative curvature.
        start = block.start
        length = 1e-3 * (1 + start.norm(dim=1, keepdim=True)) * (lowest.value < -lowest.error)[:, None]
        uphill = (block.evaluate(start)[1] * lowest.vector).sum(1, keepdim=True) > 0
        found = self.inner.minimise(block.evaluate, start + torch.where(uphill, -length, length) * lowest.vector)
        sizes = self._sizes()
        with torch.no_grad():
            before = block.per_particle(start) @ self.members.mT  # [G, K]
            fall = before - block.per_particle(found.point) @ self.members.mT
        gaps = []
        for row, level, endless in zip(fall, (before * sizes).sum(1), found.unbounded.tolist(), strict=True):
            value = (row * sizes).sum()
            rounding = math.sqrt(torch.finfo(value.dtype).eps) * (1 + level.abs())
            if endless:
                gaps.append(Measure(math.inf, math.inf, math.inf))
            elif not value.isfinite() or value < -rounding:
                logger.warning("the inner minimiser ended above its start, or not at a number: the gap is not known")
                gaps.append(Measure(math.nan, math.nan, math.nan))
            else:
                gaps.append(self.bootstrap.measure(value.clamp_min(0), _resampled(weights, sizes) @ row))
        return gaps, found.evaluations

    def _lowest(self, block: Block) -> Lowest:
        point = block.start.clone().requires_grad_()
        slope = gradients(block.per_particle(point).mean(1).sum(), [point], create_graph=True)[0]

        def product(v: Tensor) -> Tensor:
            return gradients((slope * v).sum(), [point], retain_graph=True)[0]

        return lowest_eigenpair(product, block.start, iterations=self.lanczos, generator=self.generator)

    def _curvatures(self, block: Block, weights: Tensor, lowest: Lowest) -> list[Measure]:
        by_group, drawn = self._second_derivatives(block, lowest.vector), _resampled(weights, self._sizes())
        rows = zip(lowest.value, by_group, strict=True)
        return [self.bootstrap.measure(value, drawn @ row) for value, row in rows]

    def _second_derivatives(self, block: Block, direction: Tensor) -> Tensor:
        """The numbers v' E_k d2H/du2 v of every row and group k ``[G, K]``, differentiating in the groups' weights."""
        rows, groups = len(block.start), len(self.members)
        point = block.start.clone().requires_grad_()
        share = torch.ones(rows, groups, dtype=point.dtype, device=point.device, requires_grad=True)
        total = (block.per_particle(point) @ self.members.mT * share).sum()
        first = (gradients(total, [point], create_graph=True)[0] * direction).sum()
        second = (gradients(first, [point], create_graph=True)[0] * direction).sum()
        return gradients(second, [share])[0]

    def _sizes(self) -> Tensor:
        """The share of the particles in each group ``[K]``."""
        counts = (self.members > 0).sum(1).to(self.members)
        return counts / counts.sum()


def _resampled(weights: Tensor, sizes: Tensor) -> Tensor:
    """Weights of the groups in each replicate, by the particles they hold: ``[replicates, K]``."""
    scaled = weights * sizes
    return scaled / scaled.sum(1, keepdim=True)


def _length(gram: Tensor, weights: Tensor) -> Tensor:
    """||sum_k w_k g_k|| from the Gram matrix of the g_k, for each row of weights."""
    return torch.einsum("bk,kl,bl->b", weights, gram, weights).clamp_min(0).sqrt()


def memberships(particles: int, groups: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """A random partition of the particles as averaging rows ``[K, N]``."""
    group = torch.arange(particles, device="cpu") % groups
    order = torch.randperm(particles, generator=generator, device="cpu")
    member = torch.nn.functional.one_hot(group[order], groups).to(like).mT
    return member / member.sum(1, keepdim=True)
