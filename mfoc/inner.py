"""Minimisers of the frozen Hamiltonian: the inner problems of MSA, E-MSA and of the certificate's gap.

All rows of a block ``[G, n]`` are minimised at once and independently: every row has its own step lengths and its own
curvature, so the result for a row does not depend on which others it is stacked with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mfoc._errors import InvalidValue

Evaluate = Callable[[Tensor], tuple[Tensor, Tensor]]


class Minimum(NamedTuple):
    """Where an inner minimisation ended.

    Attributes:
        point: ``[G, n]``.
        value: ``[G]``.
        unbounded: rows along which the function fell without end ``[G]``.
        evaluations: values and gradients asked for.
    """

    point: Tensor
    value: Tensor
    unbounded: Tensor
    evaluations: int


class Inner(Protocol):
    """An inner minimiser."""

    def minimise(self, evaluate: Evaluate, start: Tensor) -> Minimum:
        """Minimises ``evaluate: [G, n] -> (value [G], slope [G, n])`` from ``start``."""


@dataclass(frozen=True)
class Descent:
    """Gradient descent with a fixed step. One step of it makes MSA the same as ``Gradient`` with SGD.

    Attributes:
        lr: step length.
        steps: number of steps.
    """

    lr: float
    steps: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.lr, int | float) or not self.lr > 0:
            raise InvalidValue(f"lr is {self.lr!r}; expected a positive step length")
        _positive(steps=self.steps)

    def minimise(self, evaluate: Evaluate, start: Tensor) -> Minimum:
        """See ``Inner``."""
        point = start
        for _ in range(self.steps):
            value, slope = evaluate(point)
            point = point - self.lr * slope
        return Minimum(point, value, torch.zeros_like(value, dtype=torch.bool), self.steps)


@dataclass(frozen=True)
class LBFGS:
    """Limited-memory BFGS with a weak Wolfe line search, all rows at once.

    Nocedal & Wright, "Numerical Optimization" (2006), algorithm 7.4; the line search is the bisection of Lewis &
    Overton (2013), "Nonsmooth optimization via quasi-Newton methods", algorithm 2.6.

    Attributes:
        steps: most iterations.
        history: curvature pairs kept.
        tol: a row stops when its largest gradient entry is at most this.
        trials: most evaluations in one line search.
    """

    steps: int = 10
    history: int = 10
    tol: float = 1e-8
    trials: int = 20

    def __post_init__(self) -> None:
        _positive(steps=self.steps, history=self.history, trials=self.trials)
        if not isinstance(self.tol, int | float) or not self.tol >= 0:
            raise InvalidValue(f"tol is {self.tol!r}; expected a non-negative number")

    def minimise(self, evaluate: Evaluate, start: Tensor) -> Minimum:
        """See ``Inner``."""
        point = start
        value, slope = evaluate(point)
        evaluations = 1
        unbounded = torch.zeros_like(value, dtype=torch.bool)
        active = value.isfinite() & (slope.abs().amax(1) > self.tol)
        pairs: list[tuple[Tensor, Tensor, Tensor]] = []
        for iteration in range(self.steps):
            if not active.any():
                break
            direction = -_two_loop(slope, pairs)
            descends = _dot(direction, slope) < 0
            direction = torch.where(descends[:, None], direction, -slope) * active[:, None]
            first = torch.ones_like(value)
            if iteration == 0:
                first = 1 / slope.norm(dim=1).clamp_min(1.0)
            found = _line_search(evaluate, point, value, slope, direction, first, active, self.trials)
            evaluations += found.evaluations
            step, change = found.point - point, found.slope - slope
            curvature = _dot(step, change)
            # A row that did not move, or moved where the slope did not grow, adds no curvature (weight zero).
            useful = curvature > torch.finfo(value.dtype).eps * _dot(change, change)
            weight = torch.where(useful, 1 / curvature.where(useful, torch.ones_like(curvature)), 0)
            pairs = [*pairs, (step, change, weight)][-self.history :]
            point, value, slope = found.point, found.value, found.slope
            unbounded = unbounded | found.unbounded
            active = active & found.moved & ~unbounded & (slope.abs().amax(1) > self.tol)
        return Minimum(point, value, unbounded, evaluations)


def _positive(**counts: int) -> None:
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise InvalidValue(f"{name} is {count!r}; expected a positive integer")


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1)


def _two_loop(slope: Tensor, pairs: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """The inverse Hessian estimate times the slope, row by row."""
    q, alphas = slope, []
    for step, change, weight in reversed(pairs):
        alpha = weight * _dot(step, q)
        q = q - alpha[:, None] * change
        alphas.append(alpha)
    scale = torch.ones_like(slope[:, 0])
    for _, change, weight in pairs:  # the newest useful pair of each row decides its scale
        scale = torch.where(weight > 0, 1 / (weight * _dot(change, change)).clamp_min(1e-300), scale)
    q = scale[:, None] * q
    for (step, change, weight), alpha in zip(pairs, reversed(alphas), strict=True):
        q = q + (alpha - weight * _dot(change, q))[:, None] * step
    return q


class _Found(NamedTuple):
    point: Tensor
    value: Tensor
    slope: Tensor
    moved: Tensor
    unbounded: Tensor
    evaluations: int


def _line_search(
    evaluate: Evaluate,
    point: Tensor,
    value: Tensor,
    slope: Tensor,
    direction: Tensor,
    length: Tensor,
    active: Tensor,
    trials: int,
    *,
    armijo: float = 1e-4,
    wolfe: float = 0.9,
) -> _Found:
    """A point on each ray that falls enough (Armijo) and is flat enough (weak Wolfe), by doubling and bisection."""
    descent = _dot(slope, direction)
    low, high = torch.zeros_like(length), torch.full_like(length, torch.inf)
    best = (point, value, slope)  # per row: the farthest point so far that falls enough
    moved, done = torch.zeros_like(active), ~active
    for used in range(1, trials + 1):  # noqa: B007  (the count is reported)
        there = point + length[:, None] * direction
        new_value, new_slope = evaluate(there)
        falls = (new_value <= value + armijo * length * descent) & new_value.isfinite() & ~done
        best = _choose(falls, (there, new_value, new_slope), best)
        moved = moved | falls
        flat = falls & (_dot(new_slope, direction) >= wolfe * descent)
        low = torch.where(falls, length, low)
        high = torch.where(~falls & ~done, length, high)
        done = done | flat
        if done.all():
            break
        length = torch.where(done, length, torch.where(high.isinf(), 2 * length, (low + high) / 2))
    endless = active & ~done & high.isinf()
    return _Found(*best, moved, endless, used)


def _choose(
    mask: Tensor, new: tuple[Tensor, Tensor, Tensor], old: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    wide = mask[:, None]
    return torch.where(wide, new[0], old[0]), torch.where(mask, new[1], old[1]), torch.where(wide, new[2], old[2])
