"""Fixed points of length and correlation maps on a whole grid of variances, from tables, by Newton's method.

Points that tables cannot decide, because two fixed points are about to meet or a variance is out of their range, are
left to ``SignalPropagation``, one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mfoc.analysis.gaussian import GaussianMoments
from mfoc.analysis.propagation.theory.chebyshev import basis, clenshaw
from mfoc.analysis.propagation.theory.signal import CRITICAL
from mfoc.analysis.propagation.theory.tables import FARTHEST, LengthTable, Strip

_NOISE = 2e-14  # of V, relative
_PER_DECADE = 100
_STEPS = 60
_ITERATIONS = 3000


@dataclass(frozen=True, eq=False)
class Lengths:
    """Fixed points q* of q -> w V(q) + b.

    Attributes:
        q: inf where the variance diverges; not to be read where it is not known yet, [A, B].
        unknown: which are not known yet, [A, B].
    """

    q: Tensor
    unknown: Tensor


def lengths(table: LengthTable, weights: Tensor, biases: Tensor) -> Lengths:
    """Where iterating from q = 1 ends.

    Args:
        table: of the activation; it is extended as far as needed.
        weights: sigma_w^2, [A].
        biases: sigma_b^2, [A, B].
    """
    scan, second, trapped = _scanned(table, float(weights.max()), float(biases.max()))
    if bool((second.diff() < -1e-14 * second[:-1].abs()).any()):
        return _iterated(table, weights, biases)
    start = int((scan == 1).nonzero())
    moves = scan - weights[:, None] * second  # the bias for which a variance is a fixed point, [A, scanned]
    noise = _NOISE * scan
    up, sure_up = _first_above(moves[:, start:], noise[start:], biases)
    down, sure_down = _first_above(-moves[:, : start + 1].flip(1), noise[: start + 1].flip(0), -biases)
    at_one = moves[:, start, None]
    rises, falls = at_one < biases - _NOISE, at_one > biases + _NOISE
    gone, ends = rises & (up == len(scan) - start), falls & (down > start)
    upper = torch.where(rises, start + up, start - down + 1).clamp(1, len(scan) - 1)
    unknown = ~(rises | falls) | (rises & ~sure_up) | (falls & ~sure_down)
    far = weights[:, None] * _far_slope(table.moments)
    unknown |= gone & ((far < 1) | (not trapped and table.top < FARTHEST))
    q = torch.full_like(biases, math.inf)
    q[ends] = 0.0
    inside = ~(gone | ends | unknown)
    w, b, above = weights[:, None].expand_as(biases)[inside], biases[inside], upper[inside]
    q[inside], converged = _newton(table, w, b, scan[above - 1], scan[above])
    unknown[inside] |= ~converged
    return Lengths(q, unknown)


def _far_slope(moments: GaussianMoments) -> float:
    below, above = moments.activation.slopes
    return (below**2 + above**2) / 2


def _scanned(table: LengthTable, weight: float, bias: float) -> tuple[Tensor, Tensor, bool]:
    """Variances from zero on, V there, and whether no map of the grid leaves them."""
    for top in (*range(2, FARTHEST + 1, 2),):
        table.extend(top)
        q = _variances(table.farthest)
        second = table(q)[0]
        if weight * float(second.max()) + bias < table.farthest:
            return q, second, True
    return q, second, False


def _variances(farthest: float) -> Tensor:
    below = torch.logspace(-18, 0, 18 * _PER_DECADE + 1, dtype=torch.float64, device="cpu")
    above = torch.logspace(
        0, math.log10(farthest), math.ceil(math.log10(farthest) * _PER_DECADE), dtype=torch.float64, device="cpu"
    )
    above[-1] = farthest
    below[-1] = 1.0
    return torch.cat([torch.zeros(1, dtype=torch.float64, device="cpu"), below, above[1:]])


def _first_above(values: Tensor, noise: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """The first of ``values`` [A, n] above ``levels`` [A, B], [A, B], n where none is; and whether that is sure.

    It is not where a maximum between three values may have been above before.
    """
    before, middle, after = values[:, :-2], values[:, 1:-1], values[:, 2:]
    bend = 2 * middle - before - after
    peak = (middle >= before) & (middle >= after) & (bend > 0)
    higher = (after - before).square() / (8 * bend.clamp(min=1e-300)) + 1e-3 * bend
    hidden = torch.nn.functional.pad(torch.where(peak, 2 * higher, 0.0), (1, 1))
    found = [
        torch.searchsorted((values - noise + more).cummax(1).values, levels.contiguous(), right=True)
        for more in (0.0, hidden)
    ]
    return found[0], found[0] == found[1]


def _newton(table: LengthTable, weights: Tensor, biases: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The crossing in each bracket, by Newton's method on those that still move; and which have been found. [P]."""
    ends = [weights * table(end)[0] + biases - end for end in (low, high)]
    share = (ends[0] / (ends[0] - ends[1])).nan_to_num(0.5).clamp(0, 1)
    q = low + share * (high - low)
    falls = ends[1] < 0
    converged = torch.zeros_like(q, dtype=torch.bool)
    active = torch.arange(len(q), device="cpu")
    for _ in range(_STEPS):
        here, w, b = q[active], weights[active], biases[active]
        second, _, growth = table(here)
        excess = w * second + b - here
        above = (excess > 0) == falls[active]  # the crossing is above
        low[active], high[active] = torch.where(above, here, low[active]), torch.where(above, high[active], here)
        step = here - excess / (w * growth - 1)
        inside = (step >= low[active]) & (step <= high[active])
        following = torch.where(inside, step, (low[active] + high[active]) / 2)
        q[active] = following
        still = torch.minimum((following - here).abs(), high[active] - low[active]) > 4e-15 * here
        done = (excess.abs() <= 4e-15 * here) | ~still
        converged[active[done]] = True
        active = active[~done]
        if not len(active):
            break
    return q, converged


def _iterated(table: LengthTable, weights: Tensor, biases: Tensor) -> Lengths:
    """By iteration, for maps that are not monotone; where it has settled, Newton's method goes on."""
    w, b = (part.expand_as(biases).reshape(-1) for part in (weights[:, None], biases))
    q = torch.ones_like(w)
    unknown = torch.zeros_like(q, dtype=torch.bool)
    active = torch.arange(len(q), device="cpu")
    for _ in range(_ITERATIONS):
        here = q[active]
        following = w[active] * table(here)[0] + b[active]
        out = following > table.farthest
        unknown[active[out]] = True
        still = (following - here).abs() > 1e-13 * following
        q[active] = torch.where(out, math.inf, following)
        active = active[still & ~out]
        if not len(active):
            break
    unknown[active] = True
    slopes = torch.zeros_like(q)
    settled = ~unknown
    for _ in range(3):
        second, _, slopes[settled] = table(q[settled])
        step = (w[settled] * second + b[settled] - q[settled]) / (w[settled] * slopes[settled] - 1)
        q[settled] = (q[settled] - step).clamp(min=0)
    unknown |= settled & ((w * slopes).abs() >= 1 - 1e-6)
    return Lengths(q.reshape(biases.shape), unknown.reshape(biases.shape))


# ---- correlations


def lost_correlations(q: Tensor, weights: Tensor, strips: list[Strip]) -> tuple[Tensor, Tensor, Tensor]:
    """1 - c* and chi_c of chaotic points, [P] each, and which of them have been found.

    Args:
        q: their variances, [P].
        weights: sigma_w^2, [P].
        strips: that hold all variances.
    """
    r = q.sqrt()
    lost, chi = torch.full_like(q, math.nan), torch.full_like(q, math.nan)
    converged = torch.zeros_like(q, dtype=torch.bool)
    for strip in strips:
        members = ((r >= strip.low) & (r <= strip.high) & ~converged).nonzero()[:, 0]
        if not len(members):
            continue
        along = basis(r[members], strip.low, strip.high, strip.cells[0].shape[1])
        cell_of = _cells(strip, along, weights[members])
        for index, cell in enumerate(strip.cells):
            chosen = (cell_of == index).nonzero()[:, 0]
            if len(chosen):
                series = (cell.transpose(1, 2) @ along[chosen].mT).transpose(0, 1).contiguous()  # [in s, 2, P]
                ends = strip.edges[index], strip.edges[index + 1]
                places = members[chosen]
                found = _descend(_along(ends), ends, weights[places], series)
                lost[places], chi[places], converged[places] = found
    return lost, chi, converged


def _cells(strip: Strip, along: Tensor, weights: Tensor) -> Tensor:
    """In which piece of s the decorrelation, which falls, is 1 / sigma_w^2: [P]."""
    starts = [cell[0] @ _at_start(cell.shape[2]) for cell in strip.cells[1:]]
    passed = [(weights * (along @ start) > 1).long() for start in starts]
    return torch.stack(passed).sum(0) if passed else torch.zeros(len(weights), dtype=torch.long, device="cpu")


def _along(ends: tuple[float, float]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The series of a piece, times the weights' variances."""
    first, last = ends
    return lambda s, w, series: w * clenshaw(series, (2 * s - (first + last)) / (last - first))


def _at_start(count: int) -> Tensor:
    """Chebyshev polynomials at -1."""
    return 1.0 - 2.0 * (torch.arange(count, dtype=torch.float64, device="cpu") % 2)


def _descend(
    both: Callable[[Tensor, Tensor, Tensor], Tensor], ends: tuple[float, float], weights: Tensor, data: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The s at which sigma_w^2 times the decorrelation is 1, within a piece: 1 - c, chi_c, whether found. [P] each.

    Args:
        both: s, weights, data -> sigma_w^2 times the decorrelation and the slope, [2, P].
        ends: of the piece.
        weights: sigma_w^2, [P].
        data: what else ``both`` takes of every point, [..., P].
    """
    first, last = ends
    margin = 1e-9 * (last - first)  # pieces agree to rounding only
    low, high = torch.full_like(weights, max(0.0, first - margin)), torch.full_like(weights, last + margin)
    s = (low + high) / 2
    lost, chi = torch.zeros_like(s), torch.zeros_like(s)
    converged = torch.zeros_like(s, dtype=torch.bool)
    active = torch.arange(len(s), device="cpu")
    for _ in range(_STEPS):
        here = s[active]
        spread, slope = both(here, weights[active], data)
        lost[active], chi[active] = here.square(), slope
        above = spread > 1
        low[active], high[active] = torch.where(above, here, low[active]), torch.where(above, high[active], here)
        step = here - (spread - 1) * here / (2 * (slope - spread))
        inside = (step >= low[active]) & (step <= high[active])
        following = torch.where(inside, step, (low[active] + high[active]) / 2)
        still = torch.minimum((following - here).abs(), high[active] - low[active]) > 1e-14 * here
        done = ((spread - 1).abs() <= 2e-15) | ~still
        s[active] = following
        converged[active[done]] = True
        if bool(done.all()):
            break
        if bool(done.any()):
            active, data = active[~done], data[..., ~done]
    return lost.clamp(max=1.0), chi, converged


def lost_one_by_one(moments: GaussianMoments, q: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``lost_correlations`` from the moments themselves, for a few points."""

    def both(s: Tensor, w: Tensor, at: Tensor) -> Tensor:
        return w * torch.stack(moments.decorrelation(at, s.square().clamp(max=2.0)))

    return _descend(both, (0.0, 1.0), weights, q)


def chaotic(chi_1: Tensor, q: Tensor) -> Tensor:
    """Where correlations fall below one, [...]."""
    return (chi_1 > 1 + CRITICAL) & q.isfinite()
