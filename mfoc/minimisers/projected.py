"""Projected limited-memory BFGS: the rows of a block are minimised within a region, all at once and independently.

The inverse Hessian (of the Lagrangian, where a boundary bends) is learned on the face that active constraints hold a
row to, and steps are searched along the path that lands in the region: the two-metric projection of Bertsekas (1982),
"Projected Newton methods for optimization problems with simple constraints", and for the l1 penalty the orthant-wise
method of Andrew & Gao (2007). On sets that are no boxes such a step may fail to descend; the projected gradient, which
does, then takes its place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mfoc import tree
from mfoc.bounds import RowRegion
from mfoc.minimisers.memory import Memory, dot, where
from mfoc.minimisers.protocol import Evaluate, Minimum
from mfoc.printing import by_identity

_FIRST = 1e-2  # the first trial of a row moves it by this share of its size
_ARMIJO, _WOLFE = 1e-4, 0.9
_TURN = 3  # trials after which the direction of L-BFGS is given up for the projected gradient


@dataclass(frozen=True)
class Settings:
    """Those of ``mfoc.minimisers.LBFGS``."""

    steps: int
    history: int
    tol: float
    trials: int


@by_identity
class _Rows(NamedTuple):
    """Rows ``[G, n]``, their values with the penalty ``[G]``, slopes without it and projected gradients ``[G, n]``."""

    point: Tensor
    value: Tensor
    slope: Tensor
    projected: Tensor

    @staticmethod
    def where(mask: Tensor, new: _Rows, old: _Rows) -> _Rows:
        return _Rows(*(where(mask, a, b) for a, b in zip(new, old, strict=True)))


def minimise_within(region: RowRegion, evaluate: Evaluate, start: Tensor, settings: Settings) -> Minimum:
    """See ``Minimiser.minimise``."""
    evaluations = 0

    def at(point: Tensor) -> _Rows:
        nonlocal evaluations
        evaluations += 1
        value, slope = evaluate(point)
        return _Rows(point, value + region.penalty(point), slope, region.stationary(point, slope))

    here = at(region.project(start))
    size = here.projected.abs().amax(1)
    floor, eps = settings.tol * size, torch.finfo(start.dtype).eps
    tiny = torch.finfo(start.dtype).tiny
    first = _FIRST * tree.length(here.point, 1).clamp_min(1.0) / tree.length(here.projected, 1).clamp_min(tiny)
    memory = Memory(settings.history, start, first)
    unbounded = torch.zeros_like(size, dtype=torch.bool)
    active = here.value.isfinite() & size.isfinite() & (size > floor)
    length = torch.ones_like(size)  # of directions that the memory has scaled
    for _ in range(settings.steps):
        if not bool(active.any()):
            break
        direction = -region.face(here.point, here.slope, memory.times(here.projected))
        there, endless = _searched(region, at, here, direction, length, memory.scale[:, 0], active, settings.trials)
        moved = active & ((there.point != here.point).any(1))
        step, change = (
            region.face(here.point, here.slope, one - other)
            for one, other in ((there.point, here.point), (there.slope, here.slope))
        )
        memory.add(moved, step, change + region.bend(here.point, here.slope, step))
        unbounded |= active & endless
        here = _Rows.where(moved, there, here)
        left = here.projected.abs().amax(1)
        active = moved & ~unbounded & (left > floor) & (left > 4 * eps * here.slope.abs().amax(1))
    return Minimum(here.point, here.value - region.penalty(here.point), unbounded, evaluations)


def _searched(
    region: RowRegion,
    at: Callable[[Tensor], _Rows],
    here: _Rows,
    direction: Tensor,
    length: Tensor,
    steepest: Tensor,
    active: Tensor,
    trials: int,
) -> tuple[_Rows, Tensor]:
    """The point of each active row where a search along the path ends, and whether it fell without end."""
    descends = dot(direction, here.projected) < 0
    direction = where(descends, direction, -here.projected)
    length = torch.where(descends, length, steepest)
    best, going = here, active
    found = torch.zeros_like(active)
    for trial in range(trials):
        if trial == _TURN:  # what has found nothing yet goes along the projected gradient
            lost = going & ~found
            direction, length = where(lost, -here.projected, direction), torch.where(lost, steepest, length)
        moved = region.land(here.point, here.point + length[:, None] * direction, here.slope)
        there = at(where(going, moved, here.point))
        falls = going & _falls(region, here, there)
        beyond = falls & _steep(here, there) & ((there.point != best.point).any(1))
        better = falls & (~found | (there.value <= best.value))
        ended = going & ((falls & ~beyond) | (found & ~better) | (there.value == -torch.inf))
        best = _Rows.where(better, there, best)
        found |= falls
        going = going & ~ended
        length = torch.where(going, torch.where(falls, 4 * length, length * _shrink(here, there)), length)
        if not bool(going.any()):
            break
    return best, (going & found) | (best.value == -torch.inf)


def _falls(region: RowRegion, here: _Rows, there: _Rows) -> Tensor:
    """The condition of Armijo; where values differ by rounding alone, the trapezoid of the slopes judges."""
    step = there.point - here.point
    hoped = dot(here.projected, step)
    change = there.value - here.value
    mean = dot(here.slope + there.slope, step) / 2 + region.penalty(there.point) - region.penalty(here.point)
    rounding = change.abs() <= 8 * torch.finfo(change.dtype).eps * here.value.abs()
    change = torch.where(rounding, mean, change)
    return ((change <= _ARMIJO * hoped) & (hoped < 0) & there.value.isfinite()) | (there.value == -torch.inf)


def _steep(here: _Rows, there: _Rows) -> Tensor:
    """Whether the function still falls nearly as steeply along the step, so that it should be longer."""
    step = there.point - here.point
    return dot(there.projected, step) < _WOLFE * dot(here.projected, step)


def _shrink(here: _Rows, there: _Rows) -> Tensor:
    """The factor to a shorter step: the minimum of the parabola through value, slope and value, within [0.1, 0.5]."""
    step = there.point - here.point
    slope = dot(here.projected, step)
    bend = there.value - here.value - slope
    factor = -slope / (2 * torch.where(bend > 0, bend, 1.0))
    return torch.where((bend > 0) & factor.isfinite(), factor.clamp(0.1, 0.5), 0.25)
