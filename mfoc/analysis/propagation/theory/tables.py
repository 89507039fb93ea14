"""Tables of Gaussian moments, made once an activation: of a variance, and of a variance and a correlation.

Both are Chebyshev interpolants in r = sqrt(q), by octaves, since activations see sqrt(q) z; correlations enter as
s = sqrt(1 - c), in which those of activations with kinks are smooth.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from mfoc.analysis.gaussian import GaussianMoments
from mfoc.analysis.propagation.theory.chebyshev import Piece, coefficients, evaluate, interpolate, nodes, tail
from mfoc.analysis.propagation.theory.mehler import columns, terms_for

FARTHEST = 10  # octave of the largest r: q = 1e6, as far as SignalPropagation's grid looks
_LOWEST = -5  # all below 2^-5 is one piece
_EXTENDING = threading.RLock()
_MANY_TERMS = 2**15  # of Mehler's series
_NEAR = 0.1  # the s below which it has too many for an activation with kinks


@dataclass(eq=False)
class LengthTable:
    """V(q), E phi'^2 and dV/dq for 0 <= q <= 4^top.

    Attributes:
        moments: what is tabulated.
        top: the last octave.
        pieces: of V/q, or of V itself where it is not zero at zero; of E phi'^2; of dV/dq.
    """

    moments: GaussianMoments
    top: int = _LOWEST
    pieces: list[Piece] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.from_zero = float(self.moments.second_moment(torch.zeros((), dtype=torch.float64, device="cpu"))) == 0
        self._extend([0.0, 2.0**_LOWEST])

    @property
    def farthest(self) -> float:
        """The largest variance it holds."""
        return 4.0**self.top

    def extend(self, top: int) -> None:
        """Goes on to the octave ``top``."""
        with _EXTENDING:  # the table is one for all threads
            if top > self.top:
                self._extend([2.0**octave for octave in range(self.top, top + 1)])
                self.top = top

    def __call__(self, q: Tensor) -> Tensor:
        """V, E phi'^2 and dV/dq at q [P], at most ``farthest``: [3, P]."""
        found = evaluate(self.pieces, q.sqrt())
        if self.from_zero:
            found[0] *= q
        return found

    def _extend(self, edges: list[float]) -> None:
        self.pieces = self.pieces + interpolate(self._exact, edges)

    def _exact(self, r: Tensor) -> tuple[Tensor, Tensor]:
        q = r.square()
        second, slopes, growth = self.moments.second_moment(q), self.moments.slope_moment(q), self.moments.growth(q)
        lengths = second / q if self.from_zero else second
        sizes = (second * slopes / q).sqrt()  # of what is averaged for dV/dq, which may itself vanish
        return torch.stack([lengths, slopes, growth], 1), torch.stack([lengths, slopes, sizes], 1)


@dataclass(frozen=True, eq=False)
class Strip:
    """A piece of r, and on it pieces of s.

    Attributes:
        low: least r.
        high: largest r.
        edges: of the pieces of s = sqrt(1 - c), from 0 to 1.
        cells: of each piece, the coefficients of the decorrelation and of the slope, [2, in r, in s].
    """

    low: float
    high: float
    edges: list[float]
    cells: list[Tensor]


@dataclass(eq=False)
class CorrelationTable:
    """E[(phi(u1) - phi(u2))^2] / (2 q delta) and E phi'(u1) phi'(u2) at one variance q and delta = 1 - c in [0, 1]."""

    moments: GaussianMoments
    strips: dict[tuple[float, float], list[Strip]] = field(default_factory=dict)

    def worth(self, r: float) -> int:
        """How many points at standard deviations up to r make a table cheaper than their own moments."""
        return 0 if self._all_terms(r) else 64

    def between(self, low: float, high: float) -> list[Strip]:
        """Strips from ``low`` to ``high``, within an octave."""
        if (low, high) not in self.strips:
            self.strips[low, high] = self._made(low, high)
        return self.strips[low, high]

    def _all_terms(self, r: float) -> bool:
        """Whether Mehler's series can be had as a whole."""
        return terms_for(self.moments, r, 0.0) <= _MANY_TERMS

    def _exact(self, r: Tensor, s: Tensor) -> Tensor:
        """[2, in r, in s]."""
        if self._all_terms(float(r.max())) or float(s.min()) >= _NEAR:
            return columns(self.moments, r, s.square())
        return torch.stack(self.moments.decorrelation(r.square()[:, None], s.square()[None]))

    def _made(self, low: float, high: float, halvings: int = 3) -> list[Strip]:
        whole = self._all_terms(high)
        tolerance = 1e-14 if whole else 2e-12
        r = nodes(low, high, 24)
        open_ = list(pairwise((0.0, 0.3, 1.0) if whole else (0.0, _NEAR, 0.25, 0.5, 1.0)))
        cells: list[tuple[float, float, Tensor]] = []
        for turn in range(8):
            following: list[tuple[float, float]] = []
            for left, right in sorted(open_, reverse=True):  # the last ones cost least, and say whether to halve r
                near = not whole and right <= _NEAR
                count = 12 if near else 32
                values = self._exact(r, nodes(left, right, count))
                series = coefficients(coefficients(values.movedim(0, -1)).transpose(0, 1))
                size = values.abs().amax((1, 2))  # series is [in s, in r, 2]
                along = float((tail(series).amax(0) / size).max())
                across = float((tail(series.transpose(0, 1)).amax(0) / size).max())
                if across > (2e-11 if near else tolerance) and halvings:
                    middle = (low + high) / 2
                    return self._made(low, middle, halvings - 1) + self._made(middle, high, halvings - 1)
                if along <= (2e-11 if near else tolerance) or turn == 7:
                    cells.append((left, right, series.permute(2, 1, 0)))
                else:
                    following += [(left, (left + right) / 2), ((left + right) / 2, right)]
            open_ = following
        cells.sort(key=lambda cell: cell[0])
        return [Strip(low, high, [cell[0] for cell in cells] + [1.0], [cell[2] for cell in cells])]


def octaves(low: float, high: float) -> list[tuple[float, float]]:
    """Intervals of r, none longer than an octave, which cover ``low`` to ``high``; the outer ends at round numbers."""
    first = max(_LOWEST, math.floor(math.log2(max(low, 1e-300))))
    last = max(_LOWEST + 1, math.ceil(math.log2(high)))
    edges = [0.0 if low < 2.0**_LOWEST else 2.0**first] + [2.0**k for k in range(first + 1, last + 1)]
    if low < 2.0**_LOWEST:
        edges = [0.0, *[2.0**k for k in range(_LOWEST, last + 1)]]
    fine = 2.0 ** (last - 4)
    edges[-1] = min(edges[-1], fine * math.ceil(high / fine))
    if edges[0] > 0:
        fine = 2.0 ** (first - 2)
        edges[0] = max(edges[0], fine * math.floor(low / fine))
    return [pair for pair in pairwise(edges) if pair[0] < pair[1]]


@lru_cache(maxsize=16)
def length_table(moments: GaussianMoments) -> LengthTable:
    """The activation's table, which grows as it is used."""
    return LengthTable(moments)


@lru_cache(maxsize=16)
def correlation_table(moments: GaussianMoments) -> CorrelationTable:
    """The activation's table, which grows as it is used."""
    return CorrelationTable(moments)
