"""Chebyshev interpolation, piece by piece: what a function costs once, its interpolant gives a million times."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from mfoc.errors import InvalidValue


@lru_cache(maxsize=8)
def _points(count: int) -> tuple[Tensor, Tensor]:
    """Chebyshev points of the first kind on [-1, 1], [count], and what turns values there into coefficients."""
    angle = math.pi * (torch.arange(count, dtype=torch.float64, device="cpu") + 0.5) / count
    matrix = torch.cos(torch.arange(count, dtype=torch.float64, device="cpu")[:, None] * angle) * (2 / count)
    matrix[0] /= 2
    return torch.cos(angle), matrix


def nodes(low: float, high: float, count: int) -> Tensor:
    """Chebyshev points of an interval, which leave out its ends: [count]."""
    return (low + high) / 2 + (high - low) / 2 * _points(count)[0]


def coefficients(values: Tensor) -> Tensor:
    """The coefficients of the polynomial with these values at ``nodes``: [count, ...] both."""
    found: Tensor = torch.tensordot(_points(len(values))[1], values, dims=1)
    return found


def tail(coefficients: Tensor) -> Tensor:
    """The largest of the last three coefficients, which says what is missing: [count, ...] -> [...]."""
    return coefficients[-3:].abs().amax(0)


def basis(x: Tensor, low: float, high: float, count: int) -> Tensor:
    """Chebyshev polynomials on an interval: x [P] -> [P, count]."""
    scaled = (2 * x - (low + high)) / (high - low)
    rows = [torch.ones_like(x), scaled]
    twice = 2 * scaled
    for _ in range(count - 2):
        rows.append(torch.addcmul(-rows[-2], twice, rows[-1]))
    return torch.stack(rows[:count], 1)


def clenshaw(series: Tensor, x: Tensor) -> Tensor:
    """Many series, each at a point of its own (Clenshaw 1955): series [count, ..., P], x [P] in [-1, 1] -> [..., P]."""
    after = previous = torch.zeros_like(series[0])
    twice = 2 * x
    for row in series[1:].flip(0):
        after, previous = torch.addcmul(row - previous, twice, after), after
    return torch.addcmul(series[0] - previous, x, after)


@dataclass(frozen=True, eq=False)
class Piece:
    """Several functions on one interval: coefficients [count, functions]."""

    low: float
    high: float
    coefficients: Tensor


def interpolate(
    functions: Callable[[Tensor], tuple[Tensor, Tensor]],
    edges: Sequence[float],
    *,
    count: int = 24,
    tolerance: float = 1e-14,
    accepted: float = 1e-11,
    halvings: int = 5,
) -> list[Piece]:
    """Pieces on which polynomials stand for several functions, halved where they do not yet.

    Args:
        functions: points [P] -> their values and the sizes that errors are relative to, [P, functions] both.
        edges: of the first pieces, ascending.
        count: points in each piece.
        tolerance: of the last coefficients, relative to the functions' sizes.
        accepted: what is accepted of pieces that halving does not improve: the functions themselves are rounded.
        halvings: how often at most.

    Raises:
        InvalidValue: the functions vary too fast.
    """
    done: list[Piece] = []
    open_ = [(low, high, math.inf) for low, high in pairwise(edges)]
    for turn in range(halvings + 1):
        if not open_:
            break
        places = torch.cat([nodes(low, high, count) for low, high, _ in open_])
        parts = (torch.split(part, count) for part in functions(places))
        following: list[tuple[float, float, float]] = []
        for (low, high, before), values, sizes in zip(open_, *parts, strict=True):
            series = coefficients(values)
            missing = float((tail(series) / sizes.amax(0).clamp(min=1e-300)).max())
            rounding = missing <= accepted and (turn == halvings or missing > 0.2 * before)
            if missing <= tolerance or rounding:
                done.append(Piece(low, high, series))
            elif turn < halvings:
                middle = (low + high) / 2
                following += [(low, middle, missing), (middle, high, missing)]
            else:
                raise InvalidValue(f"a Gaussian moment varies too fast for standard deviations {low:.4g} to {high:.4g}")
        open_ = following
    return sorted(done, key=lambda piece: piece.low)


def evaluate(pieces: Sequence[Piece], x: Tensor) -> Tensor:
    """The functions at x [P] within the pieces: [functions, P]."""
    out = x.new_empty(pieces[0].coefficients.shape[1], len(x))
    which = torch.bucketize(x, x.new_tensor([piece.low for piece in pieces[1:]]), right=True)
    for index, piece in enumerate(pieces):
        places = (which == index).nonzero()[:, 0]
        if len(places) == len(x):
            return (basis(x, piece.low, piece.high, len(piece.coefficients)) @ piece.coefficients).mT
        if len(places):
            found = basis(x[places], piece.low, piece.high, len(piece.coefficients)) @ piece.coefficients
            out[:, places] = found.mT
    return out
