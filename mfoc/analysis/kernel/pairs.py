"""How far apart an activation sends two Gaussians, for every pair of two sets of variances at once.

``GaussianMoments.pair`` is told a correlation c; here it is 1 - c, and what comes back is a distance, so that inputs
that are close, or equal, stay so through any number of layers: with c as a float, 1e-16 too little correlation takes
1e-8 off E phi' phi' of a kink.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mfoc.analysis.closed import closed_pair
from mfoc.analysis.gaussian import GaussianMoments
from mfoc.analysis.hermite import MOST, coefficients, correlated, enough_terms, piecewise_coefficients
from mfoc.analysis.quadrature import panels

_LEAST = 1e-30  # a variance that stands for zero
_FAR = math.exp(-36 / MOST)  # below this correlation Mehler's series has converged whatever the activation
_AT_ONCE = 2**20


class Side:
    """The variances of one set of Gaussians, with what is needed of each alone.

    Args:
        moments: of the activation.
        q: variances, [N].
    """

    def __init__(self, moments: GaussianMoments, q: Tensor) -> None:
        self.moments, self.q = moments, q
        self.root = q.clamp(min=_LEAST).sqrt()
        self.second = moments.second_moment(q)
        self.steep = moments.slope_moment(q)
        self._series = q.new_empty(len(q), 0)

    def series(self, terms: int) -> Tensor:
        """E[phi(sqrt(q) z) He_n(z)] / sqrt(n!) for n < ``terms``, by rules that know the kinks: [N, terms]."""
        if terms > self._series.shape[1]:
            phi, enough = self.moments.activation, min(MOST, 2 ** math.ceil(math.log2(terms)))
            self._series = piecewise_coefficients(phi.function, phi.kinks, self.moments.strip, self.root, enough)
        return self._series[:, :terms]


def distances(one: Side, two: Side, delta: Tensor, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
    """E[(phi(u1) - phi(u2))^2] and E phi'(u1) phi'(u2) of pairs.

    Args:
        one: variances of u1, [N].
        two: variances of u2, [M].
        delta: one less the correlation, in [0, 2], of the pairs asked for.
        rows: which of u1.
        columns: which of u2.

    Returns:
        as ``delta`` each, float64.
    """
    moments = one.moments
    q1, q2 = one.q[rows], two.q[columns]
    twice = one.second[rows, None] + two.second[columns]
    if moments.activation.family != "other":
        both, slope = closed_pair(moments.activation, q1[:, None], q2, 1 - delta)
        apart = twice - 2 * both
    else:
        terms = enough_terms(moments.strip, float(torch.cat([one.q, two.q]).max()))
        if not moments.activation.kinks and terms <= MOST:
            function = moments.activation.function
            first, second = (coefficients(function, q, terms) for q in (q1, q2))
            apart, slope = _by_series(first, second, delta)
            slope /= one.root[rows, None] * two.root[columns]
        else:
            apart, slope = _piecewise(one, two, delta, rows, columns)
    equal = _equal(q1, q2, delta)
    return apart.clamp(min=0).masked_fill(equal, 0.0), torch.where(equal, one.steep[rows, None], slope)


def _equal(q1: Tensor, q2: Tensor, delta: Tensor) -> Tensor:
    """Which pairs are one variable twice: of these, everything is known."""
    return (delta == 0) & ((q1[:, None] - q2).abs() <= 1e-15 * q2)


# ---- analytic activations: Mehler's series


def _by_series(first: Tensor, second: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    """From the coefficients a_n [N, terms] and b_n [M, terms], without a difference of large numbers.

    The distance is sum (a_n - b_n)^2 + 2 delta sum_j c^j sum_(n > j) a_n b_n, by Horner's rule; the slope is that in c.
    """
    c = 1 - delta
    value, slope, tail, lost = (torch.zeros_like(c) for _ in range(4))
    for n in range(first.shape[1] - 1, -1, -1):
        slope.mul_(c).add_(value)
        value.mul_(c).addr_(first[:, n], second[:, n])
        lost.mul_(c).add_(tail)
        tail.addr_(first[:, n], second[:, n])
    apart = torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")
    return apart.square() + 2 * delta * lost, slope


# ---- activations with kinks, and large variances: the series far from c = +-1, two-dimensional rules near it


def _piecewise(one: Side, two: Side, delta: Tensor, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
    far = (1 - delta).abs() <= _FAR
    c = torch.where(far, 1 - delta, 0.0)
    terms = _terms(float(c.abs().max()))
    both, slope = correlated(one.series(terms)[rows], two.series(terms)[columns], c)
    apart = one.second[rows, None] + two.second[columns] - 2 * both
    slope = slope / (one.root[rows, None] * two.root[columns])
    i, j = (~far & ~_equal(one.q[rows], two.q[columns], delta)).nonzero(as_tuple=True)
    if len(i):
        apart[i, j], slope[i, j] = _plane(one.moments, one.root[rows][i], two.root[columns][j], delta[i, j])
    return apart, slope


def _terms(largest: float) -> int:
    """How many terms of Mehler's series matter at correlations up to this one."""
    needed = 36 / -math.log(largest) if largest > 0 else 0.0
    return int(min(MOST, max(8.0, needed)))


def _plane(moments: GaussianMoments, root1: Tensor, root2: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    """The two means for a list of pairs, [P] each, one axis after the other: d = (z1 - z2) / sqrt(2), then s.

    On a line of constant d, kinks are points; the lines on which two of them meet are where the outer rule is cut.
    """
    kinks = root1.new_tensor(moments.activation.kinks)
    one, two = kinks / root1[:, None], kinks / root2[:, None]  # [P, k]
    along, across = (1 - delta / 2).clamp(min=1e-300).sqrt(), (delta / 2).clamp(min=1e-300).sqrt()
    longest = min(4.0, 3 * moments.strip / float(torch.maximum(root1, root2).max()))
    meeting = ((one[:, :, None] - two[:, None, :]) / (2 * across[:, None, None])).flatten(1)
    d, outer = panels(meeting, longest, moments.reach)
    width = 32 * (math.ceil(2 * moments.reach / longest) + 2 * len(kinks))
    rows = torch.arange(len(root1), device=root1.device).repeat_interleave(d.shape[1])
    live = outer.flatten() > 0  # empty panels
    means = root1.new_zeros(2, d.numel())
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
