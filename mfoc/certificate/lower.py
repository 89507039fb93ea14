"""Whether J is lower where the search for gaps has ended: controls of one stage replaced, and rolled out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mfoc import tree
from mfoc.certificate.intervals import Measure
from mfoc.certificate.split import Split
from mfoc.certificate.study import Row
from mfoc.particles import Particles
from mfoc.pontryagin import penalised, rollout
from mfoc.problem import Problem
from mfoc.statistics import mean_interval
from mfoc.tree import Tree

_FARTHEST = 4.0**-24  # of the way to a control that was found, in quarters of what is left
_LEAST = 1e-2  # of the size of the controls: nearer than that, second derivatives say more
_TRIED = 8  # stages, those of the largest gaps
ALL = -1  # in the place of a stage: all controls together
_LENGTHS = (1.0, 0.1, 0.01)  # of steps along a direction in which J hardly bends, for controls of size one


@dataclass(frozen=True, eq=False)
class Search:
    """Rolls out what was found.

    Attributes:
        problem: the problem.
        controls: the controls in question.
        split: the cloud and its folds.
        confidence: level of the interval.
    """

    problem: Problem
    controls: Tree
    split: Split
    confidence: float

    @torch.no_grad()
    def best(self, rows: Mapping[int, Row]) -> tuple[Measure, int]:
        """By how much J falls at the best of them, and its stage (``ALL``: of all controls); zero where it does not."""
        here = self._cost(self.split.whole, self.controls)
        rounding = 1e2 * torch.finfo(here.dtype).eps * float(here.abs().mean())
        best, at = 0.0, (ALL, 0.0)
        for t, share in self._candidates(rows, rounding):
            row = rows[t]
            fall = float((here - self._cost(self.split.whole, self._with(t, row.points[0], share))).mean())
            # What the slope that is left explains is a step towards the same minimum.
            explained = 2 * share * abs(float(row.slope @ (row.points[0] - self._point(t))))
            if fall - explained > rounding and fall > best:
                best, at = fall, (t, share)
        if best == 0:
            return Measure(0.0, 0.0, 0.0), ALL
        return self._measured(best, rows[at[0]].points[1:], *at), at[0]

    @torch.no_grad()
    def along(self, total: Row) -> tuple[Measure, bool]:
        """By how much J falls along the direction of its lowest curvature, and whether it does on both sides.

        Where that curvature is small beside the largest, rounding and the residual that is left hide its sign, and
        derivatives of higher order decide (u^3, -u^4, a product of zeros). What the slope along the direction explains
        is no fall, nor what a Newton step would gain.
        """
        nothing = Measure(0.0, 0.0, 0.0), False
        if total.direction is None or not total.largest > 0:
            return nothing
        here, held = self._cost(self.split.whole, self.controls), tree.leaves(self.controls)
        point, direction = tree.ravel(self.controls).detach(), total.direction
        slope = abs(float(direction @ total.slope))
        floor = 1e2 * torch.finfo(here.dtype).eps * float(here.abs().mean()) + total.residual.value**2 / total.largest
        best, falls, both = 0.0, None, False
        for length in _LENGTHS:
            step = length * (1 + float(tree.length(point)))
            sides = [
                here
                - self._cost(self.split.whole, self._admitted(tree.rebuild(self.controls, tree.pieces(moved, held))))
                for moved in (point + step * direction, point - step * direction)
            ]
            gains = [float(side.mean()) - 2 * slope * step for side in sides]
            both |= all(gain > floor for gain in gains)
            for side, gain in zip(sides, gains, strict=True):
                if gain > max(best, floor):
                    best, falls = gain, side
        if falls is None:
            return nothing
        level = 1 - (1 - self.confidence) / (2 * len(_LENGTHS))  # the best of as many
        mean, half = mean_interval(falls, level)
        half = 0.0 if self.split.complete else half
        return Measure(mean, mean - half, mean + half), both

    def _candidates(self, rows: Mapping[int, Row], rounding: float) -> Iterator[tuple[int, float]]:
        promising = [t for t, row in rows.items() if row.points and row.gap.value > rounding]
        for t in sorted(promising, key=lambda t: -rows[t].gap.value)[:_TRIED]:
            length, share = float(tree.length(rows[t].points[0] - self._point(t))), 1.0
            least = _LEAST * (1 + float(tree.length(self._point(t))))
            while share > _FARTHEST and (share == 1 or share * length > least):
                yield t, share
                share /= 4

    def _point(self, t: int) -> Tensor:
        return tree.ravel(self.controls if t == ALL else self.controls[t])

    def _measured(self, fall: float, points: list[Tensor], t: int, share: float) -> Measure:
        """With an interval for the population: each fold judges the control that was found without it."""
        if self.split.complete:
            return Measure(fall, fall, fall)
        if len(points) < 2:
            return Measure(fall, -math.inf, math.inf)
        cloud = self.split.whole
        here, falls = self._cost(cloud, self.controls), []
        for fold, point in enumerate(points):
            own = self.split.members(fold).to(here.device)
            falls.append((here - self._cost(cloud, self._with(t, point, share)))[own])
        mean, half = mean_interval(torch.cat(falls), self.confidence)
        return Measure(fall, mean - half, mean + half)

    def _with(self, t: int, point: Tensor, share: float) -> Tree:
        """The controls with those of stage t (or all) moved a share of the way to a point."""
        if t == ALL:
            whole = tree.leaves(self.controls)
            ends = zip(whole, tree.pieces(point, whole), strict=True)
            return tree.rebuild(self.controls, [a + share * (b - a) for a, b in ends])
        held = tree.leaves(self.controls[t])
        moved = [a + share * (b - a) for a, b in zip(held, tree.pieces(point, held), strict=True)]
        stages = [tree.rebuild(u, moved) if s == t else u for s, u in enumerate(self.controls)]
        return tree.rebuild(self.controls, tree.leaves(stages))

    def _admitted(self, controls: Tree) -> Tree:
        region = self.problem.region
        return controls if region is None else region.project(controls)

    def _cost(self, cloud: Particles, controls: Tree) -> Tensor:
        return penalised(self.problem, controls, rollout(self.problem, controls, cloud).cost)
