"""The ratio of a signal to a noise, both read off the products between the mean gradients of groups of draws.

Draws g = G + e, E e e' = Sigma, in K groups of m; the product of two groups' means is M_kl = <g_k, A g_l>, A the
identity or a Hessian. Then for k != l  E M_kl = G'AG, and E M_kk = G'AG + tr(A Sigma) / m: off the diagonal there is no
bias. The mean off the diagonal is a U-statistic. Where G is small it is degenerate: its second-order part, which a
bootstrap gets wrong (Bickel & Freedman 1981, "Some asymptotic theory for the bootstrap", sec. 6), is then all there is.
So its variance is taken from Hoeffding's decomposition (1948, "A class of statistics with asymptotically normal
distribution", sec. 5), and the interval is made as Fieller's (1954, "Some problems in interval estimation"): of the
ratio signal / noise, which is near zero where the signal is, and not of its inverse, which is then anything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mfoc.statistics import student_t_quantile


@dataclass(frozen=True)
class Ratio:
    """What the products say.

    Attributes:
        signal: G'AG, without bias.
        noise: tr(A Sigma), without bias.
        low, high: the interval of signal / noise; infinite where the noise is not told from zero.
        negative: whether the signal or the noise is told from zero, and below it.
    """

    signal: float
    noise: float
    low: float
    high: float
    negative: bool


def signal_to_noise(products: Tensor, members: int, confidence: float, bend: Tensor | None = None) -> Ratio:
    """Signal, noise, and the interval of signal / noise.

    Args:
        products: M ``[K, K]``, symmetric, K of three at least.
        members: m, the draws in each group.
        confidence: level of the interval.
        bend: where A is itself a mean of A_k over the groups: G'A_k G, then unbiased estimates of tr(A_k Sigma) by two
            independent probes or more ``[1 + probes, K]``.
    """
    m, k = products.double().cpu(), len(products)
    diagonal = m.diagonal()
    beside = (m.sum(1) - diagonal) / (k - 1)
    signal, own = float(beside.mean()), float(diagonal.mean())
    noise = members * (own - signal)
    second = _second_order(m)
    square = student_t_quantile(confidence, k - 1) ** 2
    allowed = square * _covariance(m, beside, members, second, bend)
    low, high = _fieller(signal, noise, allowed)
    if low <= 0 < noise:
        # Of a signal that is not told from zero neither is the first-order part of its error, 4 G'A Sigma A G / n: it
        # is G'AG times an eigenvalue of A Sigma, of which the mean one is taken, tr(A Sigma A Sigma) / tr(A Sigma); and
        # second = 2 tr(A Sigma A Sigma) / n^2.
        high = _fieller(signal, noise, allowed, square * second * k * members)[1]
    reach = allowed.diagonal().sqrt().tolist()
    return Ratio(signal, noise, low, high, signal < -reach[0] or noise < -reach[1])


def _second_order(m: Tensor) -> float:
    """The second-order part of the variance of the mean off the diagonal."""
    k = len(m)
    centred = m - m.mean(0) - m.mean(1, keepdim=True) + m.mean()
    off = float(centred.square().sum() - centred.diagonal().square().sum()) / (k * (k - 1))
    return 2 * off / (k * (k - 1))


def _covariance(m: Tensor, beside: Tensor, members: int, second_order: float, bend: Tensor | None) -> Tensor:
    """The covariance of the errors of signal and noise ``[2, 2]``."""
    k = len(m)
    # First order: what each group adds to the two.
    influence = torch.stack([2 * beside, members * (m.diagonal() - 2 * beside)])
    excess = m.new_zeros(2, 2)
    if bend is not None:
        along, traces = bend[0].double().cpu(), bend[1:].double().cpu()
        curved = torch.stack([along, traces.mean(0)])
        influence += curved
        # What probes differ by is no spread of the traces. And that G'AG and tr(A Sigma) err alike, so that their ratio
        # errs less, is not relied upon: few groups do not show how far that goes.
        excess[1, 1] = (traces.var(1).mean() - traces.mean(0).var()) / (len(traces) - 1)
        excess[0, 1] = excess[1, 0] = torch.cov(curved)[0, 1].clamp_min(0)
    first = (torch.cov(influence) - excess) / k
    # Second order, of the signal; the noise holds -members times the signal.
    way = torch.tensor([1.0, -members], dtype=m.dtype, device="cpu")
    second = second_order * torch.outer(way, way)
    # The spread of `beside` holds the second order twice over.
    return second + _positive(first - 2 * second, first)


def _positive(matrix: Tensor, scale: Tensor) -> Tensor:
    """The nearest positive semidefinite matrix, when its axes are scaled by the diagonal of another."""
    size = scale.diagonal().clamp_min(torch.finfo(scale.dtype).tiny).sqrt()
    values, vectors = torch.linalg.eigh(matrix / torch.outer(size, size))
    kept: Tensor = (vectors * values.clamp_min(0)) @ vectors.mT
    return kept * torch.outer(size, size)


def _fieller(signal: float, noise: float, allowed: Tensor, slope: float = 0.0) -> tuple[float, float]:
    """All r with (signal - r noise)^2 <= V_ss - 2 r V_sn + r^2 V_nn + 2 slope r, V being ``allowed``.

    The error of a variance goes with the variance: V_nn is for the noise that was found, and is taken for the geometric
    mean of that and signal / r, the noise that is supposed. Without errors of the signal the interval is then symmetric
    in the logarithm.
    """
    if not noise**2 > float(allowed[1, 1]) or noise < 0:
        return -math.inf, math.inf
    a = noise**2
    b = signal * noise - float(allowed[0, 1]) + max(signal, 0.0) * float(allowed[1, 1]) / (2 * noise) + slope
    c = signal**2 - float(allowed[0, 0])
    root = math.sqrt(max(b * b - a * c, 0.0))
    return (b - root) / a, (b + root) / a
