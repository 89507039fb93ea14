"""Gradient descent on the frozen Hamiltonian."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mfoc import tree
from mfoc.bounds import Region, RowRegion
from mfoc.checks import check_integer, check_positive
from mfoc.minimisers.protocol import Evaluate, Minimum
from mfoc.tree import Tree


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
        check_positive(lr=self.lr)
        check_integer(1, steps=self.steps)

    @torch.no_grad()
    def moved(self, controls: Tree, gradient: Tree, region: Region | None = None) -> Tree:
        """Controls after one step along a gradient that is known; ``minimise`` does the same by rows."""
        followed = gradient if region is None else region.stationary(controls, gradient)
        pairs = zip(tree.leaves(controls), tree.leaves(followed), strict=True)
        moved = tree.rebuild(controls, [u - self.lr * slope for u, slope in pairs])
        return moved if region is None else region.land(controls, moved, gradient)

    def minimise(self, evaluate: Evaluate, start: Tensor, region: RowRegion | None = None) -> Minimum:
        """See ``Minimiser``; where rows are bounded the step is along the projected gradient, and projected."""
        point = start
        for _ in range(self.steps):
            value, slope = evaluate(point)
            if region is None:
                point = point - self.lr * slope
            else:
                followed = region.stationary(point, slope)
                point = region.land(point, point - self.lr * followed, slope)
        return Minimum(point, value, torch.zeros_like(value, dtype=torch.bool), self.steps)
