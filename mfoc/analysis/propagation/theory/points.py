"""All that is known of the points of a grid: from tables, checked, the stubborn ones by ``SignalPropagation``."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mfoc.analysis.gaussian import GaussianMoments
from mfoc.analysis.propagation.theory.grids import chaotic, lengths, lost_correlations, lost_one_by_one
from mfoc.analysis.propagation.theory.signal import SignalPropagation
from mfoc.analysis.propagation.theory.tables import correlation_table, length_table, octaves
from mfoc.errors import InvalidValue

_FEW = 24
_RESIDUAL = 1e-12
_WRONG = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class Points:
    """A part of a grid, [A, B] each: q*, chi_1, chi_q, 1 - c* and chi_c."""

    q: Tensor
    chi_1: Tensor
    chi_q: Tensor
    lost: Tensor
    chi_c: Tensor

    @staticmethod
    def of(moments: GaussianMoments, weights: Tensor, biases: Tensor) -> Points:
        """For weights [A] and biases [A, B]."""
        if moments.homogeneous:
            return _homogeneous(moments, weights, biases)
        w = weights[:, None].expand_as(biases)
        table = length_table(moments)
        found = lengths(table, weights, biases)
        q, unknown = found.q, found.unknown
        moment = table(q.where(q.isfinite() & ~unknown, 0.0).reshape(-1)).reshape(3, *q.shape)
        points = Points(q, w * moment[1], w * moment[2], torch.zeros_like(q), torch.zeros_like(q))
        unknown = unknown | points._unlike(moments, w, biases)
        points._without_end(moments, w)
        points._correlate(moments, w, biases, unknown)
        for row, column in unknown.nonzero().tolist():
            points._set((row, column), moments, float(weights[row]), float(biases[row, column]))
        return points

    def _unlike(self, moments: GaussianMoments, w: Tensor, b: Tensor) -> Tensor:
        """Where the exact length map moves q*, of the points whose map is closest to the diagonal and a few others."""
        known = self.q.isfinite().reshape(-1).nonzero()[:, 0]
        closeness = (1 - self.chi_q).abs().reshape(-1)[known]
        worst = known[closeness.argsort()[:_FEW]]
        sample = torch.cat([worst, known[:: max(1, len(known) // _FEW)]])
        off = torch.zeros(self.q.numel(), dtype=torch.bool, device="cpu")
        moved = self._moved(moments, w, b, sample)
        off[sample] = moved > _RESIDUAL
        if bool((moved > _WRONG).any()):  # no rounding: the table is not to be trusted
            off[known] = self._moved(moments, w, b, known) > _RESIDUAL
        return off.reshape(self.q.shape)

    def _moved(self, moments: GaussianMoments, w: Tensor, b: Tensor, where: Tensor) -> Tensor:
        q, gain, bias = (part.reshape(-1)[where] for part in (self.q, w, b))
        return (gain * moments.second_moment(q) + bias - q).abs() / q.clamp(min=1e-4)

    def _without_end(self, moments: GaussianMoments, w: Tensor) -> None:
        """The conventions of SignalPropagation where lengths diverge."""
        below, above = moments.activation.slopes
        far = (below**2 + above**2) / 2
        diverges = self.q == math.inf
        for part in (self.chi_1, self.chi_q):
            part[diverges] = far * w[diverges]
        self.lost[diverges] = 0.0 if math.isfinite(far) else math.nan
        self.chi_c.copy_(self.chi_1)
        self.chi_c[diverges] = 1.0 if math.isfinite(far) else math.nan

    def _correlate(self, moments: GaussianMoments, w: Tensor, b: Tensor, unknown: Tensor) -> None:
        """c* and chi_c of the chaotic points."""
        self._orthogonal(moments, w, b)
        where = chaotic(self.chi_1, self.q) & ~unknown
        if not bool(where.any()):
            return
        table, q, gain = correlation_table(moments), self.q[where], w[where]
        r = q.sqrt()
        lost, chi = torch.zeros_like(q), torch.zeros_like(q)
        found = torch.zeros_like(q, dtype=torch.bool)
        for low, high in octaves(float(r.min()), float(r.max())):
            inside = ((r >= low) & (r <= high) & ~found).nonzero()[:, 0]
            if len(inside) > table.worth(high):
                solved = lost_correlations(q[inside], gain[inside], table.between(low, high))
            else:
                solved = lost_one_by_one(moments, q[inside], gain[inside])
            lost[inside], chi[inside], found[inside] = solved
        sample = torch.arange(len(q), device="cpu")[:: max(1, len(q) // _FEW)]
        sample = torch.cat([sample, lost.argmin()[None], lost.argmax()[None]])
        sample = sample[found[sample]]
        spread = gain[sample] * moments.decorrelation(q[sample], lost[sample])[0]
        found[sample[(spread - 1).abs() > 10 * _RESIDUAL]] = False  # c needs two digits less
        lost[self.lost[where] == 1] = 1.0  # up to rounding it is
        self.lost[where], self.chi_c[where] = lost, chi
        unknown[where] |= ~found

    def _orthogonal(self, moments: GaussianMoments, w: Tensor, b: Tensor) -> None:
        """Points of odd activations without biases, at which inputs end orthogonal: see SignalPropagation."""
        row, column = ((b == 0) & (self.chi_1 > 1) & (self.q > 0) & self.q.isfinite()).nonzero(as_tuple=True)
        q, gain = self.q[row, column], w[row, column]
        odd = gain * moments.mean(q).square() <= 1e-28 * q
        row, column, q, gain = row[odd], column[odd], q[odd], gain[odd]
        self.lost[row, column] = 1.0
        near = ~chaotic(self.chi_1[row, column], q)  # few: those within rounding of the critical line
        for i, j, length, weight in zip(row[near], column[near], q[near], gain[near], strict=True):
            self.chi_c[i, j] = weight * moments.decorrelation(length, torch.ones_like(length))[1]

    def _set(self, place: tuple[int, int], moments: GaussianMoments, weight: float, bias: float) -> None:
        """One point, by SignalPropagation."""
        signal = SignalPropagation(moments.activation, weight, bias)
        try:
            values = (signal.q_star, signal.chi_1, signal.chi_q, 1 - signal.c_star, signal.chi_c)
        except InvalidValue:  # a fixed point too far out
            values = (math.nan,) * 5
        for part, value in zip((self.q, self.chi_1, self.chi_q, self.lost, self.chi_c), values, strict=True):
            part[place] = value


def _homogeneous(moments: GaussianMoments, weights: Tensor, biases: Tensor) -> Points:
    """In closed form: V is proportional to q."""
    rate = float(moments.slope_moment(torch.ones((), dtype=torch.float64, device="cpu")))
    slope = (weights[:, None] * rate).expand_as(biases).contiguous()
    q = torch.where(slope < 1, biases / (1 - slope), math.inf)
    q[(biases == 0) & ((slope - 1).abs() < 2e-14)] = 1.0  # every variance stays as it is
    chi_c = torch.where(q.isfinite(), slope, 1.0)
    return Points(q, slope, slope.clone(), torch.zeros_like(q), chi_c)
