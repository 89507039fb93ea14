"""How far apart an activation sends two Gaussians, for every pair of two sets of variances at once.

``GaussianMoments.pair`` is told a correlation c; here it is 1 - c, and what comes back is a distance, so that inputs
that are close, or equal, stay so through any number of layers: with c as a float, 1e-16 too little correlation takes
1e-8 off E phi' phi' of a kink.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mfoc.analysis import closed, hermite
from mfoc.analysis.gaussian import GaussianMoments
from mfoc.analysis.quadrature import panels

_REACH = 13.0  # of Hermite functions, which die out as exp(-z^2 / 4)
_PANEL = 1.25  # Gauss-Legendre of 32 nodes resolves sqrt(1024) oscillations on it
_FAR = math.exp(-36 / hermite.MOST)  # below this correlation Mehler's series has converged whatever the activation
_AT_ONCE = 2**20


def distances(moments: GaussianMoments, q1: Tensor, q2: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    """E[(phi(u1) - phi(u2))^2] and E phi'(u1) phi'(u2) of every pair.

    Args:
        moments: of the activation.
        q1: variances of u1, [N].
        q2: variances of u2, [M].
        delta: one less their correlation, in [0, 2], [N, M].

    Returns:
        [N, M] each, float64.
    """
    if moments.activation.family != "other":
        both, slope = closed.pair(moments.activation, q1[:, None], q2[None], 1 - delta)
        apart = _outer_sum(moments, q1, q2) - 2 * both
    else:
        largest = float(torch.cat([q1, q2]).max())
        terms = hermite.enough_terms(moments.strip, largest)
        if not moments.activation.kinks and terms <= hermite.MOST:
            apart, slope = _by_series(moments, q1, q2, delta, terms)
        else:
            apart, slope = _piecewise(moments, q1, q2, delta)
    equal = (delta == 0) & (q1[:, None] == q2[None])
    slope = torch.where(equal, moments.slope_moment(q1)[:, None], slope)
    return apart.clamp(min=0).masked_fill(equal, 0.0), slope


def _outer_sum(moments: GaussianMoments, q1: Tensor, q2: Tensor) -> Tensor:
    return moments.second_moment(q1)[:, None] + moments.second_moment(q2)[None]


def _roots(q1: Tensor, q2: Tensor) -> Tensor:
    """What turns a derivative in the correlation into one in the covariance: [N, M]."""
    return (q1.clamp(min=1e-30)[:, None] * q2.clamp(min=1e-30)[None]).sqrt()


# ---- analytic activations: Mehler's series


def _by_series(moments: GaussianMoments, q1: Tensor, q2: Tensor, delta: Tensor, terms: int) -> tuple[Tensor, Tensor]:
    """From the coefficients a_n(q1), b_n(q2), without a difference of large numbers.

    sum (a_n - b_n)^2 + 2 delta sum_j c^j sum_(n > j) a_n b_n, the second by Horner's rule.
    """
    function, c = moments.activation.function, 1 - delta
    first, second = (hermite.coefficients(function, q, terms) for q in (q1, q2))
    value, slope, tail, lost = (torch.zeros_like(c) for _ in range(4))
    for n in range(terms - 1, -1, -1):
        slope.mul_(c).add_(value)
        value.mul_(c).addr_(first[:, n], second[:, n])
        lost.mul_(c).add_(tail)
        tail.addr_(first[:, n], second[:, n])
    return torch.cdist(first, second, compute_mode=_EXACT).square() + 2 * delta * lost, slope / _roots(q1, q2)


_EXACT = "donot_use_mm_for_euclid_dist"


# ---- activations with kinks, and large variances: the series far from c = +-1, two-dimensional rules near it


def _piecewise(moments: GaussianMoments, q1: Tensor, q2: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    far = (1 - delta).abs() <= _FAR
    c = torch.where(far, 1 - delta, 0.0)
    terms = _terms(float(c.abs().max()))
    first, second = (_coefficients(moments, q, terms) for q in (q1, q2))
    both, slope = hermite.correlated(first, second, c)
    apart, slope = _outer_sum(moments, q1, q2) - 2 * both, slope / _roots(q1, q2)
    equal = (delta == 0) & (q1[:, None] == q2[None])  # these are known
    rows, columns = (~far & ~equal).nonzero(as_tuple=True)
    if len(rows):
        near = _plane(moments, q1[rows], q2[columns], delta[rows, columns])
        apart[rows, columns], slope[rows, columns] = near
    return apart, slope


def _terms(largest: float) -> int:
    """How many terms of Mehler's series matter at correlations up to this one."""
    needed = 36 / -math.log(largest) if largest > 0 else 0.0
    return int(min(hermite.MOST, max(8.0, needed)))


def _coefficients(moments: GaussianMoments, q: Tensor, terms: int) -> Tensor:
    """E[phi(sqrt(q) z) He_n(z)] / sqrt(n!) for n < ``terms``, by rules that know the kinks: [N, terms]."""
    out = q.new_empty(len(q), terms)
    root = q.clamp(min=1e-30).sqrt()
    longest = min(_PANEL, 3 * moments.strip / float(root.max()))
    kinks = q.new_tensor(moments.activation.kinks)
    width = 32 * (math.ceil(2 * _REACH / longest) + len(kinks))
    for part in torch.split(torch.arange(len(q), device=q.device), max(1, _AT_ONCE // width)):
        z, w = panels(kinks / root[part, None], longest, _REACH)
        ground = torch.exp(-z.square() / 4)
        weighted = moments.activation.function(root[part, None] * z) * w / ground
        before, now = torch.zeros_like(z), ground
        for n in range(terms):
            out[part, n] = torch.linalg.vecdot(weighted, now)
            before, now = now, (z * now - math.sqrt(n) * before) / math.sqrt(n + 1)
    return out


def _plane(moments: GaussianMoments, q1: Tensor, q2: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    """The two means for a list of pairs, [P] each, one axis after the other: d = (z1 - z2) / sqrt(2), then s.

    On a line of constant d, kinks are points; the lines on which two of them meet are where the outer rule is cut.
    """
    root1, root2 = q1.clamp(min=1e-30).sqrt(), q2.clamp(min=1e-30).sqrt()
    kinks = q1.new_tensor(moments.activation.kinks)
    one, two = kinks / root1[:, None], kinks / root2[:, None]  # [P, k]
    along, across = (1 - delta / 2).clamp(min=1e-300).sqrt(), (delta / 2).clamp(min=1e-300).sqrt()
    longest = min(4.0, 3 * moments.strip / float(torch.maximum(root1, root2).max()))
    meeting = ((one[:, :, None] - two[:, None, :]) / (2 * across[:, None, None])).flatten(1)
    d, outer = panels(meeting, longest, moments.reach)
    width = 32 * (math.ceil(2 * moments.reach / longest) + 2 * len(kinks))
    rows = torch.arange(len(q1), device=q1.device).repeat_interleave(d.shape[1])
    live = outer.flatten() > 0  # empty panels
    means = q1.new_zeros(2, d.numel())
    for part in torch.split(live.nonzero()[:, 0], max(1, _AT_ONCE // width)):
        row = rows[part]
        a, b = along[row, None], (across[row] * d.flatten()[part])[:, None]
        s, inner = panels(torch.cat([one[row] - b, two[row] + b], 1) / a, longest, moments.reach)
        u1, u2 = root1[row, None] * (a * s + b), root2[row, None] * (a * s - b)
        function, slope = moments.activation.function, moments.activation.slope
        means[0, part] = torch.linalg.vecdot((function(u1) - function(u2)).square(), inner)
        means[1, part] = torch.linalg.vecdot(slope(u1) * slope(u2), inner)
    both = torch.linalg.vecdot(means.reshape(2, *d.shape), outer)
    return both[0], both[1]
