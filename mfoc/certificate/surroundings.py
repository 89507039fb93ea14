"""The slopes around a control: what its residual is small against, and which stages are flat."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mfoc import tree
from mfoc.particles import Particles
from mfoc.pontryagin import evaluate
from mfoc.problem import Problem
from mfoc.tree import Tree

_NEAR = 1e-3  # of the way to the reference control
_VANISHING = 1e-6  # slopes below this share of the reference's are none


@dataclass(frozen=True, eq=False)
class Surroundings:
    """Slopes of J at, near and away from a control, along one random direction.

    Attributes:
        reference: the control away: each number is moved by half to one and a half times the root mean square of its
            leaf's numbers, since leaves may differ in their units (of the stage's where those are zero, of 1 where
            they all are), in a random direction; or less if J is not finite there. Equal lengths would put equal
            controls on zero, where the slope of a product vanishes.
        far, near: norms of the slopes there (or as far on the other side, or at the control zero: the largest), and a
            thousandth of the way, by stage.
    """

    reference: Tree
    far: list[float]
    near: list[float]

    @classmethod
    def of(cls, problem: Problem, controls: Tree, cloud: Particles, generator: torch.Generator) -> Surroundings:
        """The surroundings of a control."""
        step = _random_step(problem, controls, generator)

        def admitted(where: Tree) -> Tree:
            return where if problem.region is None else problem.region.project(where)

        def slopes_at(where: Tree) -> list[float]:
            where = admitted(where)
            return stage_norms(problem, evaluate(problem, where, cloud).gradient)

        def slopes(share: float) -> list[float]:
            return slopes_at(_moved(controls, step, share))

        share, far, back = 1.0, slopes(1.0), slopes(-1.0)
        while not all(map(math.isfinite, [*far, *back])) and share > 1e-6:
            share /= 4
            far, back = slopes(share), slopes(-share)
        zero = [slope if math.isfinite(slope) else 0.0 for slope in slopes_at(tree.map(torch.zeros_like, controls))]
        return cls(admitted(_moved(controls, step, share)), list(map(max, far, back, zero)), slopes(share * _NEAR))

    def flat(self, stage: int, slope: float) -> str:
        """Why J is flat in the control of a stage whose own slope is given; empty where it is not."""
        far = self.far[stage]
        if max(slope, self.near[stage]) > _VANISHING * far:
            return ""
        return "saturated" if far > 0 else "unused"


def stage_norms(problem: Problem, like_controls: Tree) -> list[float]:
    """The norm at each stage; at all of them the same where the control is shared."""
    if not problem.per_stage:
        return [float(tree.norm(like_controls))] * problem.stages
    return [float(tree.norm(stage)) for stage in like_controls]


def _random_step(problem: Problem, controls: Tree, generator: torch.Generator) -> Tree:
    def step(stage: Tree) -> Tree:
        whole = _size(stage) or 1.0
        return tree.map(lambda leaf: (_size(leaf) or whole) * _signed(leaf, generator), stage)

    return [step(stage) for stage in controls] if problem.per_stage else step(controls)


def _signed(leaf: Tensor, generator: torch.Generator) -> Tensor:
    """Numbers of either sign, between a half and one and a half."""
    drawn = 2 * torch.rand(leaf.shape, generator=generator, dtype=torch.float64, device="cpu") - 1
    return (drawn + 0.5 * drawn.sign()).to(leaf)


def _size(part: Tree) -> float:
    """The root mean square of the numbers; 0 where there are none."""
    count = sum(leaf.numel() for leaf in tree.tensors(part))
    return float(tree.norm(part)) / math.sqrt(count) if count else 0.0


def _normal(leaf: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(leaf.shape, generator=generator, dtype=torch.float64, device="cpu").to(leaf)


def _moved(controls: Tree, step: Tree, share: float) -> Tree:
    return tree.rebuild(
        controls, [a + share * b for a, b in zip(tree.leaves(controls), tree.leaves(step), strict=True)]
    )


def search_starts(row: Tensor, initial: Tensor | None, count: int, generator: torch.Generator) -> Tensor:
    """Where else to search for a minimum from a control ``[n]``: ``[count, n]``.

    The mirrored control, the problem's initial one, and random ones around it, ever farther.
    """
    found = [-row] if initial is None else [-row, initial.to(row)]
    reach = float(row.square().mean().sqrt()) or 1.0
    while len(found) < count:
        found.append(row + reach * _normal(row, generator))
        reach *= 3
    return torch.stack(found[:count]) if count else row.new_zeros(0, len(row))
