"""Limited-memory BFGS on the frozen Hamiltonian.

All rows of a block ``[G, n]`` are minimised at once and independently: every row has its own step lengths and its own
curvature, so the result for a row does not depend on which others it is stacked with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mfoc import tree
from mfoc.bounds import RowRegion
from mfoc.checks import check_integer, check_non_negative
from mfoc.minimisers.memory import Memory, dot, where
from mfoc.minimisers.projected import Settings, minimise_within
from mfoc.minimisers.protocol import Evaluate, Minimum
from mfoc.printing import by_identity

_FIRST = 1e-2  # the first trial of a row moves it by this share of its size
_STRETCH = 100.0  # a line search goes at most this much farther at once
_FAIR = 4  # trials that a line search has before its hope is judged by values


@by_identity
class Warm(NamedTuple):
    """A minimum, and what the next minimisation of something alike may begin with.

    Attributes:
        minimum: where the minimisation ended; its ``evaluations`` are without that at the start.
        reach: inverse curvature of each row along its last step ``[G]``.
    """

    minimum: Minimum
    reach: Tensor


@dataclass(frozen=True)
class LBFGS:
    """Limited-memory BFGS with a weak Wolfe line search, all rows at once.

    Nocedal & Wright, "Numerical Optimization" (2006), sec. 7.2; the bracket of the line search is that of Lewis &
    Overton (2013), "Nonsmooth optimization via quasi-Newton methods", algorithm 2.6. Within it, and beyond its end
    while nothing bounds it, lengths are chosen by the secant of the directional slopes, which is exact on quadratics.
    Where the values of H differ by no more than rounding, slopes decide in their place, as in Hager & Zhang (2005), "A
    new conjugate gradient method with guaranteed descent and an efficient line search", sec. 4.1.

    Nothing depends on the scale of H: c H has the iterates of H, for any c > 0, to the bit where c is a power of two.
    Rows do not wait for one another: one whose line search has ended begins its next iteration with the next
    evaluation, so a block takes as many evaluations as its slowest row, not the sum of the slowest at each iteration.

    Attributes:
        steps: most iterations of a row.
        history: curvature pairs kept.
        tol: a row stops when its largest gradient entry is at most this share of the largest at the start (or can no
            longer be told from rounding: a start at the minimum ends at once).
        trials: most evaluations in one line search.
    """

    steps: int = 10
    history: int = 10
    tol: float = 1e-8
    trials: int = 20

    def __post_init__(self) -> None:
        check_integer(1, steps=self.steps, history=self.history, trials=self.trials)
        check_non_negative(tol=self.tol)

    def minimise(self, evaluate: Evaluate, start: Tensor, region: RowRegion | None = None) -> Minimum:
        """See ``Minimiser``; where rows are bounded, by projected L-BFGS (``mfoc.minimisers.projected``)."""
        if region is not None:
            settings = Settings(self.steps, min(self.history, self.steps), self.tol, self.trials)
            return minimise_within(region, evaluate, start, settings)
        found = self.warm(evaluate, start, evaluate(start)).minimum
        return found._replace(evaluations=found.evaluations + 1)

    def warm(
        self, evaluate: Evaluate, start: Tensor, first: tuple[Tensor, Tensor], reach: Tensor | None = None
    ) -> Warm:
        """``minimise`` of free rows, where something is known before it begins.

        Args:
            evaluate: see ``Minimiser``.
            start: ``[G, n]``.
            first: value ``[G]`` and slope ``[G, n]`` at the start, which are not asked for.
            reach: of each row the length of steepest descent to try first, per unit of slope ``[G]``: what an earlier
                minimisation of something alike returned. What is not positive and finite counts as not known.
        """
        value, slope = first
        unit = tree.power_of_two(slope.abs().amax(1))
        eps = torch.finfo(value.dtype).eps

        def at(point: Tensor) -> _Point:
            """What is found there, the slopes in units of the first: no product of theirs can leave the dtype."""
            value, slope = evaluate(point)
            return _Point(point, value, slope / unit[:, None])

        here = _Point(start, value, slope / unit[:, None])
        size, length = here.slope.abs().amax(1), _first_length(here)
        share = torch.full_like(length, _FIRST)
        if reach is not None:
            known = reach.to(length) * unit
            share = torch.where((known > 0) & known.isfinite(), share * (known / length), share)
            length = torch.where((known > 0) & known.isfinite(), known, length)
        floor = self.tol * size
        memory = Memory(min(self.history, self.steps), start, length)
        search = _Search.along(here, -here.slope, length, length)
        iterations = torch.zeros_like(value)
        unbounded = torch.zeros_like(value, dtype=torch.bool)
        active = value.isfinite() & size.isfinite() & (size > floor)
        evaluations = 0
        # Masked work is cheaper than to wait for a device: there the only question is whether all rows are done.
        on_host = start.device.type == "cpu"
        while evaluations or bool(active.any()):
            there = at(here.point + search.length[:, None] * search.direction)
            if evaluations == 0:
                floor = torch.maximum(floor, 8 * eps * _resolved(here, there, share))
                active = active & (size > floor)
                if not bool(active.any()):
                    evaluations += 1
                    break
            search = search.advance(here, there, unit)
            evaluations += 1
            # A search that has found nothing and can gain far less than rounding is over.
            gain = search.length * search.descent.abs() * unit
            futile = ~search.moved & (search.trials > _FAIR) & (gain <= 1e-2 * eps * here.value.abs())
            endless = search.best.value == -torch.inf
            ended = active & (search.satisfied | futile | endless | (search.trials >= self.trials))
            unbounded = unbounded | (ended & (endless | (~search.satisfied & search.high.isinf())))
            accepted = ended & search.moved
            if on_host and not bool(ended.any()):
                continue
            # Choosing by rows is most of what an iteration costs: where all choose alike, nothing is chosen.
            together = on_host and bool(accepted.all())
            memory.add(accepted, search.best.point - here.point, search.best.slope - here.slope)
            here = search.best if together else _Point.where(accepted, search.best, here)
            iterations = iterations + accepted
            going = accepted & ~unbounded & (iterations < self.steps) & (here.slope.abs().amax(1) > floor)
            active = active & (going | ~ended)
            if not bool(active.any()):
                break
            fresh = _Search.along(here, -memory.times(here.slope), torch.ones_like(value), memory.scale[:, 0])
            if together:
                search = fresh
                continue
            search = _Search(*(_where(accepted, new, old) for new, old in zip(fresh, search, strict=True)))
        return Warm(Minimum(here.point, here.value, unbounded, evaluations), memory.scale[:, 0] / unit)


def _first_length(here: _Point) -> Tensor:
    """The length at which steepest descent moves a row by a small share of its size, whatever the scale of H."""
    step = _FIRST * tree.length(here.point, 1).clamp_min(1.0)
    length: Tensor = step / here.slope.norm(dim=1).clamp_min(torch.finfo(step.dtype).tiny)
    return length


def _resolved(here: _Point, there: _Point, share: Tensor) -> Tensor:
    """The slope ``[G]`` of which that at ``here`` should be more than some roundings, judged by a first small step.

    At a minimum terms of about the size (curvature times point) cancel, and what is left of them is rounding.
    """
    size = here.slope.abs().amax(1)
    far = (there.slope - here.slope).abs().amax(1) / share
    return torch.where(far.isfinite(), torch.maximum(far, size), size)


def _where(mask: Tensor, new: Any, old: Any) -> Any:
    """Rows of ``new`` where the mask holds, else of ``old``."""
    if isinstance(new, _Point):
        return _Point.where(mask, new, old)
    return where(mask, new, old)


@by_identity
class _Point(NamedTuple):
    """Rows ``[G, n]`` with their values ``[G]`` and slopes ``[G, n]``."""

    point: Tensor
    value: Tensor
    slope: Tensor

    @staticmethod
    def where(mask: Tensor, new: _Point, old: _Point) -> _Point:
        return _Point(*(_where(mask, a, b) for a, b in zip(new, old, strict=True)))


@by_identity
class _Search(NamedTuple):
    """The line search of each row: the bracket (low, high), the length to try next, the best point so far."""

    direction: Tensor
    descent: Tensor
    length: Tensor
    low: Tensor
    high: Tensor
    low_slope: Tensor  # along the direction, at low
    high_slope: Tensor
    trials: Tensor
    best: _Point
    moved: Tensor
    satisfied: Tensor

    @staticmethod
    def along(here: _Point, direction: Tensor, length: Tensor, steepest: Tensor) -> _Search:
        """A new search; a direction that does not descend is replaced by steepest descent, of its own length."""
        descent = dot(direction, here.slope)
        descends = descent < 0
        if length.device.type != "cpu" or not bool(descends.all()):
            direction, length = _where(descends, direction, -here.slope), torch.where(descends, length, steepest)
            descent = dot(direction, here.slope)
        zero, no = torch.zeros_like(length), torch.zeros_like(length, dtype=torch.bool)
        high = torch.full_like(length, torch.inf)
        return _Search(direction, descent, length, zero, high, descent, high, zero, here, no, no)

    def advance(
        self, here: _Point, there: _Point, unit: Tensor, *, armijo: float = 1e-4, wolfe: float = 0.9
    ) -> _Search:
        """Narrows (or stretches) the bracket by what was found at the length tried."""
        slope, change = dot(there.slope, self.direction), there.value - here.value
        enough = change / unit <= armijo * self.length * self.descent  # a NaN or +inf does not fall enough
        flat = change.abs() <= 4 * torch.finfo(change.dtype).eps * here.value.abs()
        by_slope = flat & (slope <= (2 * armijo - 1) * self.descent)
        falls = ((enough | by_slope) & slope.isfinite()) | (there.value == -torch.inf)  # -inf is the end of it
        all_fall = falls.device.type == "cpu" and bool(falls.all())
        after = self._replace(
            low=torch.where(falls, self.length, self.low),
            high=torch.where(falls, self.high, self.length),
            low_slope=torch.where(falls, slope, self.low_slope),
            high_slope=torch.where(falls, self.high_slope, slope),
            trials=self.trials + 1,
            best=there if all_fall else _Point.where(falls, there, self.best),  # the farthest point that falls enough
            moved=self.moved | falls,
            satisfied=falls & (slope >= wolfe * self.descent),
        )
        unbounded = after.high.isinf()
        if all_fall and bool(unbounded.all()):
            return after._replace(length=after.beyond(self))
        return after._replace(length=torch.where(unbounded, after.beyond(self), after.between(self)))

    def beyond(self, before: _Search) -> Tensor:
        """Where the secant of the last two slopes is zero, at least twice as far; twice where none bends upward."""
        bend = self.low_slope - before.low_slope
        bends = bend > 64 * torch.finfo(bend.dtype).eps * before.low_slope.abs()
        root = self.low - (self.low - before.low) * self.low_slope / torch.where(bends, bend, 1)
        return torch.where(bends, root.clamp(2 * self.low, _STRETCH * self.low), 2 * self.low)

    def between(self, before: _Search) -> Tensor:
        """Where the secant is zero; halfway where that is not inside, or hardly narrowed the bracket before."""
        width, middle = self.high - self.low, (self.low + self.high) / 2
        root = self.low - width * self.low_slope / (self.high_slope - self.low_slope)
        inside = (root > self.low) & (root < self.high) & (width < 0.75 * (before.high - before.low))
        return torch.where(inside, root, middle)
