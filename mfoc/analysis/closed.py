"""Closed forms of Gaussian expectations of pairs: ReLU and its kin, erf, GELU.

k = sqrt(q1 q2) c is the covariance of u1 and u2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mfoc.analysis.activations import Activation


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


def closed_decorrelation(slopes: tuple[float, float], delta: Tensor) -> tuple[Tensor, Tensor]:
    """See ``GaussianMoments.decorrelation``: the same at every q."""
    even, odd = _parts(slopes)
    angle = 2 * torch.asin((delta / 2).sqrt())
    lost = (angle.sin() - angle * (1 - delta)) / delta.clamp(min=1e-300)
    return odd + even * (1 - (2 / math.pi) * lost), odd + even * (1 - 2 * angle / math.pi)


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
