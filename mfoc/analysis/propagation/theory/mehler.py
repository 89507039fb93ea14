"""Mehler's series of any activation, kinks or not, with as many terms as it takes.

With kinks the coefficients a_n^2 fall as a power of n only, but c^n ends the series all the same, away from c = 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mfoc.analysis.gaussian import GaussianMoments
from mfoc.analysis.hermite import piecewise_coefficients

_DIGITS = 37.0  # -ln of rounding
_CHUNK = 4096


def terms_for(moments: GaussianMoments, r: float, least: float) -> int:
    """How many terms reach rounding, for standard deviations up to r and 1 - c from ``least`` on."""
    by_distance = _DIGITS / least if least > 0 else math.inf
    by_strip = math.inf if moments.activation.kinks else (r * 40.0 / (2 * moments.strip)) ** 2 / 2
    return int(min(max(by_strip, 0.0) + 24.0, max(by_distance, 24.0), 1e9))


def columns(moments: GaussianMoments, r: Tensor, delta: Tensor) -> Tensor:
    """``GaussianMoments.decorrelation`` at every r [R] and delta [S]: [2, R, S].

    Args:
        moments: of the activation.
        r: standard deviations, [R].
        delta: 1 - c, away from zero where the activation has kinks, [S].
    """
    terms = terms_for(moments, float(r.max()), float(delta.min()))
    phi = moments.activation
    series = piecewise_coefficients(phi.function, phi.kinks, moments.strip, r, terms)
    parts = series.square() / r.square()[:, None]  # a_n^2 / q
    # With kinks, what is beyond the last term is still in V.
    rest = moments.second_moment(r.square()) / r.square() - parts.sum(1) if phi.kinks else torch.zeros_like(r)
    out = torch.zeros(2, len(r), len(delta), dtype=r.dtype, device="cpu")
    out[0] = rest[:, None] / delta
    for start in range(0, terms, _CHUNK):
        some = parts[:, start : start + _CHUNK]
        n = torch.arange(start, start + some.shape[1], dtype=r.dtype, device="cpu")[:, None]
        near = delta < 0.5
        lost = torch.where(near, -torch.expm1(n * torch.log1p(-torch.where(near, delta, 0.25))), 1 - (1 - delta) ** n)
        out[0] += some @ (lost / delta)
        out[1] += some @ (n * (1 - delta) ** (n - 1).clamp(min=0))
    return out
