"""Kernels of Stein's method: the direction of SVGD and the discrepancy between a cloud and its target.

With the score s = grad log p and the law rho of the cloud, the direction in which KL(rho || p) falls fastest among the
unit vector fields of a reproducing kernel Hilbert space is

    phi(x) = E_(y~rho) [ k(x, y) s(y) + grad_y k(x, y) ]

(Liu & Wang 2016, arXiv:1608.04471, eq. 5-8), and minus its rate is the squared kernel Stein discrepancy,
|phi|^2 = E_(x,y~rho) k_p(x, y) (Liu 2017, arXiv:1704.07520, thm. 3.3).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from mfoc import InvalidValue
from mfoc.checks import check_between, check_choice, check_positive, check_tensor


@runtime_checkable
class Kernel(Protocol):
    """A kernel, known by the direction it gives; it must treat the particles alike."""

    def direction(self, x: Tensor, score: Tensor) -> Tensor:
        """The direction ``[n, d]`` from the points ``[n, d]`` and the gradients of their log densities ``[n, d]``."""


@dataclass(frozen=True)
class RBF:
    """The Gaussian kernel k(x, y) = exp(-|x - y|^2 / h).

    Attributes:
        bandwidth: h; None takes median^2 / log(n + 1) of the distances of the pairs, at each step (Liu & Wang 2016,
            sec. 5, with n + 1 so that two particles have one). Where most pairs coincide the median is zero, and it is
            then that of the positive distances, as in the code of Gretton et al. (2012, "A kernel two-sample test").
    """

    bandwidth: float | None = None

    def __post_init__(self) -> None:
        check_positive(bandwidth=self.bandwidth, optional=True)

    def direction(self, x: Tensor, score: Tensor) -> Tensor:
        """See ``Kernel``."""
        centred = x - x.mean(0)  # what is subtracted below is then as small as it can be
        squares = _squares(centred)
        h = _median(squares) if self.bandwidth is None else self.bandwidth
        k = (squares / -h).exp()
        phi: Tensor = (k @ score + (2 / h) * (centred * k.sum(1, keepdim=True) - k @ centred)) / len(x)
        return phi


@dataclass(frozen=True)
class PyroRBF:
    """The kernel ``pyro.infer.RBFSteinKernel``: a bandwidth for each coordinate, median of (x_i - y_i)^2 / log(n + 1).

    Where that median is zero Pyro divides by it; here it is then the median of the positive ones, as in ``RBF``.

    Attributes:
        bandwidth_factor: multiplies the bandwidths.
        mode: as in ``pyro.infer.SVGD``: "univariate", a kernel for each coordinate, or "multivariate", their product.
    """

    bandwidth_factor: float | None = None
    mode: str = "univariate"

    def __post_init__(self) -> None:
        check_positive(bandwidth_factor=self.bandwidth_factor, finite=False, optional=True)
        check_choice("univariate", "multivariate", mode=self.mode)

    def direction(self, x: Tensor, score: Tensor) -> Tensor:
        """See ``Kernel``."""
        n = len(x)
        left, right, where = _pairs(n, x.device)
        columns = x.mT.contiguous()
        squares = (columns.index_select(1, left) - columns.index_select(1, right)).square()  # [d, pairs]
        h = _spreads(squares) / math.log(n + 1)
        h = h if self.bandwidth_factor is None else self.bandwidth_factor * h
        if self.mode == "multivariate":
            scaled = (x - x.mean(0)) / h.sqrt()
            k = (-_squares(scaled)).exp()
            return (k @ score + 2 / h.sqrt() * (scaled * k.sum(1, keepdim=True) - k @ scaled)) / n
        # Each pair once, then both its halves and the diagonal, where the kernel is one.
        half = torch.cat([(squares / -h[:, None]).exp(), torch.ones_like(h)[:, None]], dim=1)
        k = half.index_select(1, where).view(-1, n, n)
        centred = columns - columns.mean(1, keepdim=True)
        sums = k @ torch.stack([score.mT, centred, torch.ones_like(columns)], dim=2)  # [d, n, 3]
        repelled = (centred * sums[..., 2] - sums[..., 1]) * (2 / h[:, None])
        return ((sums[..., 0] + repelled) / n).mT


@dataclass(frozen=True)
class IMQ:
    """The inverse multiquadric kernel k(x, y) = (alpha + |x - y|^2 / h)^beta.

    Its tails are heavier than those of ``RBF``, so that particles far apart still feel one another, and in the kernel
    Stein discrepancy it sees non-convergence where the Gaussian does not (Gorham & Mackey 2017, arXiv:1703.01717;
    Chen et al. 2018, arXiv:1803.10161, sec. 3).

    Attributes:
        bandwidth: h; None takes that of ``RBF`` at each step.
        alpha: positive, c^2 in the papers; the default is that of ``pyro.infer.IMQSteinKernel``.
        beta: the exponent, negative; in (-1, 0) the discrepancy controls convergence.
    """

    bandwidth: float | None = None
    alpha: float = 0.5
    beta: float = -0.5

    def __post_init__(self) -> None:
        check_positive(bandwidth=self.bandwidth, finite=False, optional=True)
        _check_multiquadric(self.alpha, self.beta)

    def direction(self, x: Tensor, score: Tensor) -> Tensor:
        """See ``Kernel``."""
        centred = x - x.mean(0)
        squares = _squares(centred)
        h = _median(squares) if self.bandwidth is None else self.bandwidth
        base = self.alpha + squares / h
        k, slope = base.pow(self.beta), (-2 * self.beta / h) * base.pow(self.beta - 1)
        phi: Tensor = (k @ score + centred * slope.sum(1, keepdim=True) - slope @ centred) / len(x)
        return phi


@dataclass(frozen=True)
class PyroIMQ:
    """The kernel ``pyro.infer.IMQSteinKernel``: in each coordinate (alpha + (x_i - y_i)^2 / h_i)^beta.

    Its bandwidths h_i are those of ``PyroRBF``.

    Attributes:
        alpha: positive.
        beta: the exponent, negative.
        bandwidth_factor: multiplies the bandwidths.
        mode: as in ``pyro.infer.SVGD``: "univariate", a kernel for each coordinate, or "multivariate", their product.
    """

    alpha: float = 0.5
    beta: float = -0.5
    bandwidth_factor: float | None = None
    mode: str = "univariate"

    def __post_init__(self) -> None:
        _check_multiquadric(self.alpha, self.beta)
        check_positive(bandwidth_factor=self.bandwidth_factor, finite=False, optional=True)
        check_choice("univariate", "multivariate", mode=self.mode)

    def direction(self, x: Tensor, score: Tensor) -> Tensor:
        """See ``Kernel``."""
        n = len(x)
        left, right, _ = _pairs(n, x.device)
        columns = x.mT.contiguous()
        h = _spreads((columns[:, left] - columns[:, right]).square()) / math.log(n + 1)
        h = (h if self.bandwidth_factor is None else self.bandwidth_factor * h)[:, None, None]
        gaps = columns[:, :, None] - columns[:, None, :]  # [d, n, n]
        base = self.alpha + gaps.square() / h
        k = base.pow(self.beta)
        if self.mode == "multivariate":
            k = k.prod(0, keepdim=True).expand_as(base)
        pulled = (k @ score.mT[..., None])[..., 0]
        repelled = (k / base * gaps * (-2 * self.beta / h)).sum(2)
        return ((pulled + repelled) / n).mT


def _check_multiquadric(alpha: Any, beta: Any) -> None:
    check_positive(alpha=alpha)
    check_between(-math.inf, 0, beta=beta)


def _median(squares: Tensor) -> Tensor:
    """The bandwidth median^2 / log(n + 1) of squared distances ``[n, n]``; see ``RBF``."""
    left, right, _ = _pairs(len(squares), squares.device)
    return _spreads(squares[left, right][None], rounding=4.0)[0] / math.log(len(squares) + 1)


@functools.lru_cache(maxsize=8)
def _pairs(n: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The pairs i < j, and where entry (i, j) of an n x n matrix lies among them; the diagonal lies after the last."""
    if n < 2:
        raise InvalidValue("a median bandwidth needs at least two particles")
    left, right = torch.triu_indices(n, n, 1, device=device)
    where = torch.full((n, n), len(left), device=device)
    where[left, right] = where[right, left] = torch.arange(len(left), device=device)
    return left, right, where.flatten()


def _spreads(rows: Tensor, rounding: float = 0.0) -> Tensor:
    """The lower medians of squared distances ``[d, pairs]``; of the positive ones where the median is zero: ``[d]``.

    A row without a positive one gets 1: its kernel is 1 whatever the bandwidth, and nothing is repelled. What is below
    ``rounding`` units of the largest distance counts as zero.
    """
    unit = rounding * torch.finfo(rows.dtype).eps
    if rows.device.type == "cpu" and not (torch.is_grad_enabled() and rows.requires_grad):  # several times faster
        numbers, middle = rows.detach().numpy(), (rows.shape[1] - 1) // 2
        found = np.partition(numbers, middle, axis=1)[:, middle].copy()
        medians, least = torch.from_numpy(found), unit * float(numbers.max()) if unit else 0.0
        usual = float(found.min()) > least
    else:
        medians, least = rows.median(1).values, unit * float(rows.detach().max()) if unit else 0.0
        usual = bool((medians > least).all())
    if usual or bool(medians.isnan().any()):
        return medians
    positive = rows.detach().masked_fill(rows.detach() <= least, math.nan).nanmedian(1).values
    return torch.where(medians <= least, positive.nan_to_num(1.0), medians)


def _squares(x: Tensor) -> Tensor:
    """Squared distances ``[n, n]``; exactly zero on the diagonal and symmetric."""
    products = x @ x.mT
    squares = products.diagonal()
    gaps = (squares[:, None] + squares[None, :] - 2 * products).clamp_min(0)
    return gaps - torch.diag_embed(gaps.diagonal())


def discrepancy(x: Tensor, score: Tensor, *, length: float = 1.0, beta: float = -0.5) -> Tensor:
    """The squared kernel Stein discrepancy of a cloud, by particle: the mean over particles is the V-statistic.

    With the inverse multiquadric kernel (1 + |x - y|^2 / length^2)^beta, which sees non-convergence where lighter tails
    do not: Gorham & Mackey (2017), arXiv:1703.01717, thm. 8.

    Args:
        x: points ``[n, d]``.
        score: gradients of the target's log density there ``[n, d]``.
        length: scale of the kernel.
        beta: its exponent, in (-1, 0).

    Returns:
        mean_j k_p(x_i, x_j), ``[n]``.

    Raises:
        InvalidType, InvalidValue: no tensors of finite numbers of one shape, dtype and device; a wrong scale or
            exponent; values that leave the range of the dtype, as at a tiny length.
    """
    check_tensor("points [n, d]", dim=2, x=x)
    check_tensor("gradients of the log density, [n, d]", dim=2, score=score)
    if score.shape != x.shape or score.dtype != x.dtype or score.device != x.device:
        raise InvalidValue(
            f"score is {tuple(score.shape)} of {score.dtype} on {score.device}; "
            f"expected it as x, {tuple(x.shape)} of {x.dtype} on {x.device}"
        )
    check_positive(length=length)
    check_between(-1, 0, beta=beta)
    found = squared_discrepancy(x, score, length, beta)
    if not bool(found.isfinite().all()):
        raise InvalidValue(
            f"the discrepancy of x and score at length {length:g} leaves the range of {x.dtype}: take a length of the "
            "size of the distances between points, or float64"
        )
    return found


def squared_discrepancy(x: Tensor, score: Tensor, length: float = 1.0, beta: float = -0.5) -> Tensor:
    """See ``discrepancy``; it does not check its arguments."""
    d, c = x.shape[1], 1 / length / length  # infinite where a power would raise
    x = x - x.mean(0)
    r = c * _squares(x)
    q = 1 + r
    cross = score @ x.mT
    own = cross.diagonal()
    along = own[:, None] + own[None, :] - cross - cross.mT  # (s_i - s_j) . (x_i - x_j)
    first = q.pow(beta) * (score @ score.mT)
    second = -2 * beta * c * q.pow(beta - 1) * (along + d)
    third = -4 * beta * (beta - 1) * c * r * q.pow(beta - 2)
    return (first + second + third).mean(1)
