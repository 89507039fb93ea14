"""Closed forms of Gaussian expectations of pairs: ReLU and its kin, erf, GELU.

k = sqrt(q1 q2) c is the covariance of u1 and u2.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mfoc.analysis.activations import Activation
from mfoc.analysis.quadrature import legendre

_PANEL = 4.0  # of ln(1 + r t), which 32 Gauss-Legendre nodes take to rounding


def mean_square_slope(slopes: tuple[float, float]) -> float:
    """V(q) / q = E phi'^2 of an activation that has these slopes below and above zero."""
    return (slopes[0] ** 2 + slopes[1] ** 2) / 2


def closed_pair(activation: Activation, q1: Tensor, q2: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """E phi(u1) phi(u2) and E phi'(u1) phi'(u2) of an activation of a known family; q1, q2, c broadcast."""
    if activation.family == "homogeneous":
        return _homogeneous(activation.slopes, q1, q2, c)
    return (_erf if activation.family == "erf" else _gelu)(q1, q2, c)


def _parts(slopes: tuple[float, float]) -> tuple[float, float]:
    """phi(u) = even |u| + odd u: the squares of both."""
    below, above = slopes
    return ((above - below) / 2) ** 2, ((above + below) / 2) ** 2


def _homogeneous(slopes: tuple[float, float], q1: Tensor, q2: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Cho & Saul 2009, eqs. 3-6, for n = 0 and 1, whose |u| and u parts do not mix."""
    even, odd = _parts(slopes)
    sine = ((1 - c) * (1 + c)).clamp(min=0).sqrt()
    arc = torch.atan2(c, sine)  # asin c, with all digits near the ends
    value = (q1 * q2).sqrt() * (odd * c + even * (2 / math.pi) * (sine + c * arc))
    return value, odd + even * (2 / math.pi) * arc


def closed_decorrelation(activation: Activation, q: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    """See ``GaussianMoments.decorrelation``; q above zero and delta of one shape, of an activation of a known family.

    E[(phi(u1) - phi(u2))^2] / (2 q delta) is the mean of E phi' phi' over 1 - c from 0 to delta: no difference is
    taken. Its singularities are at t = -1/r and t = 2 + 1/r, r of the order of q, so t runs as an exponential.
    """
    if activation.family == "homogeneous":
        return _homogeneous_decorrelation(activation.slopes, delta)
    r, slope = (2 * q, _erf_slope) if activation.family == "erf" else (q, _gelu_slope)
    delta = delta.clamp(min=1e-200)
    near = torch.zeros_like(delta), delta.clamp(max=1.0)
    sums = _mean_slope(slope, r, *near, lambda t: t)
    if bool((delta > 1).any()):  # by 2 - t, which is small at the other end
        sums = sums + _mean_slope(slope, r, 2 - delta.clamp(min=1.0), torch.ones_like(delta), lambda t: 2 - t)
    return sums / delta, slope(r, delta)


def _mean_slope(
    slope: Callable[[Tensor, Tensor], Tensor], r: Tensor, low: Tensor, high: Tensor, place: Callable[[Tensor], Tensor]
) -> Tensor:
    """The integral of a slope over t, or 2 - t, from ``low`` to ``high``: [...], in the variable ln(1 + r t)."""
    first, last = torch.log1p(r * low), torch.log1p(r * high)
    pieces = max(1, math.ceil(float((last - first).max()) / _PANEL)) if r.numel() else 1
    x, w = (part.to(r) for part in legendre())
    x = ((torch.arange(pieces, device="cpu").to(r)[:, None] + x) / pieces).reshape(-1)
    share = (last - first)[..., None]
    t = torch.expm1(first[..., None] + share * x) / r[..., None]
    values = slope(r[..., None], place(t)) * (1 / r[..., None] + t) * share
    return values @ (w / pieces).repeat(pieces)


def _homogeneous_decorrelation(slopes: tuple[float, float], delta: Tensor) -> tuple[Tensor, Tensor]:
    """The same at every q."""
    even, odd = _parts(slopes)
    angle = 2 * torch.asin((delta / 2).sqrt())
    lost = (angle.sin() - angle * (1 - delta)) / delta.clamp(min=1e-300)
    return odd + even * (1 - (2 / math.pi) * lost), odd + even * (1 - 2 * angle / math.pi)


def _rest(r: Tensor, t: Tensor) -> Tensor:
    """(1 + r)^2 - r^2 (1 - t)^2: what is left of the variances beside the covariance, without a cancellation."""
    return (1 + r * t) * (1 + r * (2 - t))


def _erf_slope(r: Tensor, t: Tensor) -> Tensor:
    """E phi'(u1) phi'(u2) at q1 = q2 = r / 2 and c = 1 - t."""
    return (4 / math.pi) / _rest(r, t).sqrt()


def _gelu_slope(q: Tensor, t: Tensor) -> Tensor:
    """E phi'(u1) phi'(u2) at q1 = q2 = q and c = 1 - t: see ``_gelu``."""
    square, k = _rest(q, t), q * (1 - t)
    rest = square.sqrt()
    bulk = q.square() * (2 / (1 + q) + (q - 1) / (1 + q) * t * (2 - t))
    both = 0.25 + torch.atan2(k, rest) / (2 * math.pi)
    return both + k / (2 * math.pi * rest) * ((3 - q) / (1 + q) + bulk / square)


def _erf(q1: Tensor, q2: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Williams 1997, eq. 11, and its derivative in the covariance."""
    k = (q1 * q2).sqrt() * c
    a, b = 1 + 2 * q1, 1 + 2 * q2
    rest = (a * b - 4 * k.square()).sqrt()
    return (2 / math.pi) * torch.atan2(2 * k, rest), (4 / math.pi) / rest


def _gelu(q1: Tensor, q2: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """E u1 Phi(u1) u2 Phi(u2), by parts (Tsuchida et al. 2021), and its derivative in the covariance."""
    k = (q1 * q2).sqrt() * c
    a, b = 1 + q1, 1 + q2
    rest = (a * b - k.square()).sqrt()
    both = 0.25 + torch.atan2(k, rest) / (2 * math.pi)  # E Phi(u1) Phi(u2)
    keep = 1 - 1 / a - 1 / b
    bulk = q1 * q2 - keep * k.square()
    value = k * both + bulk / (2 * math.pi * rest)
    return value, both + k / (2 * math.pi * rest) * (1 - 2 * keep + bulk / rest.square())
