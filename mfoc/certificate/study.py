"""What a certificate measures of a function of the controls: slope, gap and lowest curvature, with intervals.

Everything is a mean over particles, or found from one: it is evaluated on the whole cloud, on the cloud without each
fold (what was found there is judged on the fold) and group by group.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mfoc import tree
from mfoc.blocks import Block
from mfoc.bounds import RowRegion
from mfoc.certificate.intervals import Measure, eigenvalue_interval, gap_interval, residual_interval
from mfoc.certificate.lanczos import Lowest, lowest_eigenpair
from mfoc.certificate.split import Split
from mfoc.derivatives import gradients, no_derivative, once_differentiable
from mfoc.frozen import Sweep
from mfoc.minimisers import LBFGS, Minimiser
from mfoc.particles import Particles
from mfoc.pontryagin import rollout
from mfoc.problem import Problem
from mfoc.second_order import generalised_blocks
from mfoc.tree import Tree

logger = logging.getLogger(__name__)

Work = Callable[[Block], Any]
Source = Callable[[Particles, Work], Iterator[tuple[Block, Any]]]  # the blocks on a cloud, and work done on each

_MIRRORED = 32  # coordinates that are looked at one by one
_AGAIN = 10  # products without a fold, from the vector of the whole cloud
_NOTHING = Measure(math.nan, math.nan, math.nan)


def hamiltonians(problem: Problem, controls: Tree) -> Source:
    """The Hamiltonian of each stage, states and costates frozen at the controls."""
    return lambda particles, work: Sweep.at(problem, controls, particles).each(work)


def generalised_hamiltonians(problem: Problem, controls: Tree) -> Source:
    """The Hamiltonian of each stage with Peng's second-order adjoint."""

    def blocks(particles: Particles, work: Work) -> Iterator[tuple[Block, Any]]:
        for block in generalised_blocks(Sweep.at(problem, controls, particles)):
            yield block, work(block)

    return blocks


def objective(problem: Problem, controls: Tree) -> Source:
    """J, as a function of all controls together."""
    held = tree.leaves(controls)

    def restore(row: Tensor) -> Tree:
        return tree.rebuild(controls, tree.pieces(row, held))

    def blocks(particles: Particles, work: Work) -> Iterator[tuple[Block, Any]]:
        def cost(rows: Tensor) -> Tensor:
            return rollout(problem, restore(rows[0]), particles).cost[None]

        stages, start = tuple(range(problem.stages)), tree.ravel(controls).detach()[None]
        region = None if problem.region is None else problem.region.rows([0], held)
        block = Block(stages, start, cost, len(particles), restore, region=region)
        yield block, work(block)

    return blocks


@dataclass(frozen=True, eq=False)
class Row:
    """What was found for one row of a block.

    Attributes:
        slope: that of the whole cloud ``[n]``, projected where controls are bounded.
        slopes: the groups' slopes ``[K, n]``.
        residual, gap, curvature: the measures.
        error: residual norm of the eigenpair.
        bound: how far the lowest eigenvalue of the sample may lie below the one found, with the confidence asked for.
        largest: the largest eigenvalue found.
        direction: the eigenvector ``[n]``, or None where there are no second derivatives.
        points: minimisers ``[n]``: of the whole cloud, of the cloud without each fold; empty where none were sought.
        missing: why there is no curvature.
        note: why something is missing, or infinite.
    """

    slope: Tensor
    slopes: Tensor
    residual: Measure
    gap: Measure
    curvature: Measure
    error: float
    bound: float
    largest: float
    direction: Tensor | None
    points: list[Tensor]
    missing: str
    note: str


@dataclass(eq=False)
class _Found:
    """What was found on one cloud for one row."""

    slope: Tensor
    raw: Tensor  # the slope before it was projected
    point: Tensor | None = None  # the minimiser
    fall: float = math.nan  # from the start to it
    before: float = math.nan  # the value at the start
    endless: bool = False
    low: tuple[float, float, float, float] | None = None  # lowest eigenvalue, its error, its bound, the largest one
    direction: Tensor | None = None
    note: str = ""


@dataclass(eq=False)
class _Judged:
    """What one group says of one row."""

    slope: Tensor
    falls: list[Tensor] = field(default_factory=list)  # from the start to each of the points found
    squares: list[Tensor] = field(default_factory=list)  # w' H w for each of the directions asked for


@dataclass(frozen=True, eq=False)
class Study:
    """Measures the blocks of a source.

    Attributes:
        split: the cloud and its groups.
        stages: of the problem.
        inner: minimiser for the gap; None where no gap is wanted.
        starts: from where else the gap is searched, for a row of a block: stage, start ``[n]`` -> starts ``[S, n]``.
        lanczos: most products for an eigenvalue.
        generator: of the first vectors.
        confidence: level of the intervals.
    """

    split: Split
    stages: int
    inner: Minimiser | None
    starts: Callable[[int, Tensor], Tensor]
    lanczos: int
    generator: torch.Generator
    confidence: float

    @torch.enable_grad()
    def rows(self, source: Source) -> tuple[dict[int, Row], float]:
        """What was found, by the (first) stage of each row, and its cost in backward passes over the whole cloud."""
        split, spent = self.split, 0.0

        def through(cloud: Particles, work: Work) -> dict[int, Any]:
            nonlocal spent
            told: dict[int, Any] = {}
            for block, (answers, passes) in source(cloud, work):
                spent += passes * len(cloud) / len(split.whole) * len(block.stages) / self.stages
                told |= dict(zip(block.stages, answers, strict=False))  # a shared control has one row
            return told

        whole = through(split.whole, self.find)
        again = replace(self, lanczos=min(self.lanczos, _AGAIN), inner=_shorter(self.inner))
        told = [whole, *(through(rest, lambda b: again.find(b, whole)) for rest in split.without_folds())]
        every = range(len(told))
        base = through(split.whole, lambda block: self._judge(block, told, every)) if split.interacting else {}
        own = [[0, 1 + fold] if len(told) > 1 else [0] for fold in split.folds.tolist()]
        parts = [
            through(part, lambda block, along=along: self._judge(block, told, along))  # type: ignore[misc]
            for part, along in zip(split.parts(), own, strict=True)
        ]
        found = {t: self._row([one[t] for one in told], base.get(t), [part[t] for part in parts]) for t in whole}
        return found, spent

    # ---- on the whole cloud, and without a fold from where that has ended

    def find(self, block: Block, known: dict[int, _Found] | None = None) -> tuple[list[_Found], float]:
        """What is found of each row on the cloud of a block, and the backward passes it took."""
        before = [known[stage] for stage in block.stages[: len(block.start)]] if known else []
        point = block.start.clone().requires_grad_()
        value = block.per_particle(point).mean(1)
        note, lowest = "", None
        try:
            if once := once_differentiable(value):
                raise RuntimeError(f"{once} is marked once_differentiable")
            slope = gradients(value.sum(), [point], create_graph=True)[0]
            face = _Face.of(block, torch.stack([one.raw for one in before]) if before else slope.detach())
            lowest = lowest_eigenpair(
                lambda v: face.hessian(v, gradients((slope * v).sum(), [point], retain_graph=True)[0]),
                block.start,
                iterations=self.lanczos,
                generator=self.generator,
                confidence=self.confidence,
                first=_directions(before),
                face=None if block.region is None else face,
            )
        except RuntimeError as error:
            note = f"curvature not available: {second_derivative_missing(error)}"
            slope = block.evaluate(block.start)[1]
        slope = slope.detach()
        projected = slope if block.region is None else block.region.stationary(block.start, slope)
        levels = block.level(block.start).detach()
        found = [
            _Found(own, raw, before=float(level), note=note)
            for own, raw, level in zip(projected, slope, levels, strict=True)
        ]
        passes = 2.0
        if lowest is not None:
            passes += 2 * lowest.products
            columns = (lowest.value, lowest.error, lowest.bound, lowest.largest)
            barred = _barred(block, lowest)
            for one, direction, no, *numbers in zip(found, lowest.vector, barred, *columns, strict=True):
                one.direction = direction
                if no:
                    one.note = "curvature not known: its lowest direction crosses constraints that are barely active"
                else:
                    one.low = tuple(map(float, numbers))
        if self.inner is not None:
            passes += self._seek(block, found, self._starting(block, before, lowest))
        return found, passes

    def _starting(self, block: Block, before: list[_Found], lowest: Lowest | None) -> list[Tensor]:
        """Where searches start: each ``[G, n]``."""
        if before:
            return [torch.stack([one.point for one in before])]  # type: ignore[misc]
        others = [self.starts(stage, row) for stage, row in zip(block.stages, block.start, strict=False)]
        first = block.start if lowest is None else _off_the_saddle(block, lowest)
        extra = torch.stack(others, 1)
        found = [first, *([_mirrored(block)] if len(extra) else []), *extra]
        return found if block.region is None else [block.region.project(start) for start in found]

    def _seek(self, block: Block, found: list[_Found], starting: list[Tensor]) -> int:
        """The minimiser of each row, the best from all starts."""
        assert self.inner is not None
        evaluations = 0
        best = torch.full_like(block.start[:, 0], torch.inf)
        for start in starting:
            minimum = block.minimised(self.inner, start)
            evaluations += minimum.evaluations
            with torch.no_grad():
                reached = block.level(minimum.point)
            for g, one in enumerate(found):
                one.endless |= bool(minimum.unbounded[g])
                failed = not math.isfinite(reached[g])
                if one.point is None or (not failed and reached[g] < best[g]):
                    one.point, best[g] = minimum.point[g], torch.inf if failed else reached[g]
        with torch.no_grad():
            ends = torch.stack([one.point for one in found])  # type: ignore[misc]
            falls = block.level(block.start) - block.level(ends)
        for one, fall in zip(found, falls.tolist(), strict=True):
            one.fall = fall
        return evaluations

    # ---- on one group

    def _judge(self, block: Block, told: list[dict[int, _Found]], along: Sequence[int]) -> tuple[list[_Judged], float]:
        """What a group says of all the points that were found, and of the directions ``along``."""
        rows = [[one[stage] for one in told] for stage in block.stages[: len(block.start)]]
        point = block.start.clone().requires_grad_()
        values = block.per_particle(point).mean(1)
        curved = all(one.direction is not None for row in rows for one in row)
        slope = gradients(values.sum(), [point], create_graph=curved)[0]
        whole = [row[0] for row in rows]
        face = _Face.of(block, torch.stack([one.raw for one in whole]))
        judged = [_Judged(one) for one in face.moved(slope.detach(), torch.stack([one.slope for one in whole]))]
        for k in along if curved else ():
            direction = torch.stack([row[k].direction for row in rows])  # type: ignore[misc]
            product = face.hessian(direction, gradients((slope * direction).sum(), [point], retain_graph=True)[0])
            for one, square in zip(judged, (product * direction).sum(1), strict=True):
                one.squares.append(square)
        for k in range(len(told)) if self.inner is not None else ():
            ends = torch.stack([row[k].point for row in rows])  # type: ignore[misc]
            with torch.no_grad():
                falls = block.level(block.start) - block.level(ends)
            for one, fall in zip(judged, falls, strict=True):
                one.falls.append(fall)
        return judged, 2.0 + 2 * curved * len(along) + (self.inner is not None) * len(told) / 3

    # ---- together

    def _row(self, told: list[_Found], base: _Judged | None, parts: list[_Judged]) -> Row:
        whole, weights, level = told[0], self.split.weights, self.confidence
        slopes = self.split.values(whole.slope, torch.stack([one.slope for one in parts]))
        wide = slopes.double()
        gram = (wide @ wide.mT).cpu()
        residual = residual_interval(gram, weights, level, dimension=slopes.shape[1])
        residual = self._known(replace(residual, value=float(tree.length(whole.slope))))
        curvature, error, bound, largest = _NOTHING, math.nan, math.nan, math.nan
        if whole.low is not None and whole.low[0] == math.inf:  # no direction is left free
            curvature, error, bound, largest = Measure(math.inf, math.inf, math.inf), *whole.low[1:]
        elif whole.low is not None and parts[0].squares:
            value, error, bound, largest = whole.low
            # Of each group: along the direction of the whole, and along that without its fold.
            table = torch.stack([torch.stack([one.squares[0], one.squares[-1]]) for one in parts]).double().cpu()
            if base is not None:
                own = torch.stack(base.squares).double().cpu()
                second = own[1 + self.split.folds] if len(told) > 1 else own[:1]
                table = self.split.values(torch.stack([own[:1].expand_as(second), second], 1), table)
            folds, size = max(1, len(told) - 1), len(whole.slope)
            curvature = self._known(
                eigenvalue_interval(value, table[:, 0], table[:, 1], bound, weights, level, folds=folds, dimension=size)
            )
        points = [one.point for one in told if one.point is not None]
        gap, note = (_NOTHING, "") if self.inner is None else self._gap(whole, base, parts, residual)
        note = "; ".join(filter(None, [whole.note, note]))
        numbers = (residual, gap, curvature, error, bound, largest)
        return Row(whole.slope, slopes, *numbers, whole.direction, points, whole.note, note)

    def _gap(self, whole: _Found, base: _Judged | None, parts: list[_Judged], residual: Measure) -> tuple[Measure, str]:
        rounding = 1e2 * torch.finfo(whole.slope.dtype).eps * abs(whole.before)
        if whole.endless:
            why = "gap infinite: H falls without end in the control (no running cost holds it)"
            return Measure(math.inf, math.inf if residual.low > 0 else 0.0, math.inf), why
        if not math.isfinite(whole.fall) or whole.fall < -rounding:
            logger.warning("the inner minimiser ended above its start, or not at a number: the gap is not known")
            return _NOTHING, "gap not available: the inner minimiser ended above its start, or not at a number"
        # Of each group: at the minimiser of the whole, and at those without each fold.
        table = torch.stack([torch.stack(one.falls) for one in parts]).double().cpu()
        if base is not None:
            table = self.split.values(torch.stack(base.falls).double().cpu(), table)
        dimension = len(whole.slope)
        weights, level = self.split.weights, self.confidence
        found = gap_interval(table[:, 0], table[:, 1:].mT, self.split.folds, weights, level, dimension=dimension)
        return self._known(replace(found, value=max(0.0, whole.fall))), ""

    def _known(self, measure: Measure) -> Measure:
        """The measure; without an interval where the particles are all there are."""
        return Measure(measure.value, measure.value, measure.value) if self.split.complete else measure


@dataclass(frozen=True, eq=False)
class _Face:
    """The face of the admissible rows that active constraints hold a block's start to; everything where it is free."""

    region: RowRegion | None
    rows: Tensor
    slopes: Tensor

    @classmethod
    def of(cls, block: Block, slopes: Tensor) -> _Face:
        return cls(block.region, block.start, slopes)

    @property
    def dimension(self) -> Tensor:
        """Of each row's face ``[G]``."""
        if self.region is None:
            return torch.full_like(self.rows[:, 0], self.rows.shape[1])
        return self.region.dimension(self.rows, self.slopes)

    def along(self, directions: Tensor) -> Tensor:
        """The part of the directions along the face."""
        return directions if self.region is None else self.region.face(self.rows, self.slopes, directions)

    def hessian(self, directions: Tensor, products: Tensor) -> Tensor:
        """Products with the Hessian of the Lagrangian along the face, from those of the Hessian."""
        if self.region is None:
            return products
        return self.along(products + self.region.bend(self.rows, self.slopes, directions))

    def moved(self, slopes: Tensor, projected: Tensor) -> Tensor:
        """The slopes of a group, moved as those of the whole are by their projection: means stay means."""
        return slopes if self.region is None else self.along(slopes - self.slopes) + projected


def _shorter(inner: Minimiser | None) -> Minimiser | None:
    """The minimiser for searches that start next to where they will end; its tolerance is a share of a small slope."""
    return replace(inner, steps=min(inner.steps, 2 * _AGAIN)) if isinstance(inner, LBFGS) else inner


def _directions(before: list[_Found]) -> Tensor | None:
    """The eigenvectors known, to start from ``[G, n]``."""
    known = [one.direction for one in before if one.direction is not None]
    return torch.stack(known) if known and len(known) == len(before) else None


def _off_the_saddle(block: Block, lowest: Lowest) -> Tensor:
    """A start a little down the direction of negative curvature: from a saddle or a maximum no slope leads away."""
    start = block.start
    length = 1e-3 * (1 + tree.length(start, 1, keepdim=True)) * (lowest.value < -lowest.error)[:, None]
    uphill = (block.evaluate(start)[1] * lowest.vector).sum(1, keepdim=True) > 0
    return start + torch.where(uphill, -length, length) * lowest.vector


def _barred(block: Block, lowest: Lowest) -> list[bool]:
    """Rows whose direction of negative curvature leaves the region either way.

    A constraint that holds with equality and a multiplier of zero leaves the face whole, and admits one side of it:
    where a direction goes to the wrong side of some, either way, a minimum may bend down along it.
    """
    if block.region is None:
        return [False] * len(block.start)
    eps = math.sqrt(torch.finfo(block.start.dtype).eps)
    step = eps * (1 + tree.length(block.start, 1, keepdim=True)) * lowest.vector
    kept = [block.region.project(moved) - moved for moved in (block.start + step, block.start - step)]
    leaves = tree.length(torch.stack(kept), 2).amin(0) > 0.1 * tree.length(step, 1)
    barred: list[bool] = (leaves & (lowest.value < -eps * lowest.largest.abs())).tolist()
    return barred


def _mirrored(block: Block) -> Tensor:
    """The start with those of its first numbers mirrored that are lower so, one by one: wells of single coordinates."""
    start = block.start
    turned = start.clone()
    with torch.no_grad():
        here = block.level(start)
        for i in range(min(start.shape[1], _MIRRORED)):
            trial = start.clone()
            trial[:, i] = -trial[:, i]
            turned[:, i] = torch.where(block.level(trial) < here, trial[:, i], start[:, i])
    return turned


def second_derivative_missing(error: RuntimeError) -> str:
    """What an error says of an operation that cannot be differentiated twice.

    Raises:
        RuntimeError: memory ran out.
    """
    if isinstance(error, torch.OutOfMemoryError):
        raise error
    return no_derivative(error) or str(error).splitlines()[0]
