"""What an adaptive step of E-MSA tries: minimisers of the augmented Hamiltonian, and their span with the last steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from mfoc import tree
from mfoc.blocks import Block, Penalty
from mfoc.distributed import expectation
from mfoc.frozen import Sweep
from mfoc.minimisers import LBFGS, Minimiser, Minimum
from mfoc.particles import Particles
from mfoc.pontryagin import penalised, rollout
from mfoc.printing import by_identity
from mfoc.solvers.subspace import combined
from mfoc.tree import Tree

_SHORTER = 3  # most lengths that a combined step is tried at, where the minimiser itself was refused


@by_identity
class Trial(NamedTuple):
    """Controls that were tried.

    Attributes:
        controls: where a step would go.
        value: J there.
        step: by how much the controls change ``[n]``.
        square: its square.
    """

    controls: Tree
    value: float
    step: Tensor
    square: float


@dataclass(eq=False)
class Trials:
    """The tries of one step; what they share is evaluated once.

    At the controls of the sweep the penalties vanish with their slopes, so that value and slope at which a minimisation
    begins are the same for all weights.
    """

    sweep: Sweep
    particles: Particles
    here: float  # J at the controls of the sweep
    gradient: Tensor  # dJ/du there [n]
    starts: dict[tuple[int, ...], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def minimised(self, inner: Minimiser, penalty: Penalty, reach: Tensor) -> tuple[Tree, list[Minimum], Tensor]:
        """The minimiser of the augmented Hamiltonian, what was found in each block, and the reach of each stage."""
        after = reach.clone()

        def work(block: Block) -> Minimum:
            if not isinstance(inner, LBFGS) or block.region is not None:
                return block.minimised(inner)
            if block.stages not in self.starts:
                self.starts[block.stages] = block.evaluate(block.start)
            rows = list(block.stages) if self.sweep.problem.per_stage else [0]
            warm = inner.warm(block.evaluate, block.start, self.starts[block.stages], reach[rows])
            after[rows] = warm.reach.to(after)
            return warm.minimum

        return *self.sweep.joined(self.sweep.each(work, penalty)), after

    def at(self, controls: Tree) -> Trial:
        """J at other controls."""
        step = tree.ravel(controls).detach() - tree.ravel(self.sweep.controls).detach()
        value, square = tree.floats([objective(self.sweep, controls, self.particles), step @ step])
        return Trial(controls, value, step, square)

    def along(self, step: Tensor) -> Trial:
        """J after a step ``[n]``."""
        old = tree.leaves(self.sweep.controls)
        moved = (u.detach() + v.to(u) for u, v in zip(old, tree.pieces(step, old), strict=True))
        return self.at(tree.rebuild(self.sweep.controls, moved))

    def lowest(
        self, plain: Trial, steps: list[Tensor], bends: list[Tensor], accepts: Callable[[Trial], bool]
    ) -> Trial | None:
        """The best of the minimiser and of steps in its span with the last ones; None where none is accepted."""
        accepted = accepts(plain)
        found = [plain] if accepted else []
        for coupled in (True, False):
            found += self._spanned(plain, steps, bends, accepts, coupled, accepted)
            if not accepted and found:
                break
        return min(found, key=lambda trial: trial.value, default=None)

    def first(
        self, plain: Trial, steps: list[Tensor], bends: list[Tensor], accepts: Callable[[Trial], bool]
    ) -> Trial | None:
        """``lowest`` where no step went before, but J'' is known along some direction.

        Where the minimiser was refused, J bends over its length by more than what is known at its start says.
        """
        accepted = accepts(plain)
        if not accepted:
            steps = bends = []
        found = [plain] if accepted else []
        found += self._spanned(plain, steps, bends, accepts, False, accepted)
        return min(found, key=lambda trial: trial.value, default=None)

    def _spanned(
        self,
        plain: Trial,
        steps: list[Tensor],
        bends: list[Tensor],
        accepts: Callable[[Trial], bool],
        coupled: bool,
        accepted: bool,
    ) -> list[Trial]:
        """The step that a model finds best, if it is accepted or, where the minimiser is not, a shorter one is."""
        rounding = 64 * torch.finfo(self.sweep.value.dtype).eps * abs(self.here)
        step = combined(plain.step, plain.value - self.here, self.gradient, steps, bends, rounding, coupled)
        if step is None:
            return []
        trial = self.shortened(step, accepts, 1 if accepted else _SHORTER)
        return [] if trial is None else [trial]

    def shortened(self, step: Tensor, accepts: Callable[[Trial], bool], lengths: int) -> Trial | None:
        """The first that is accepted of a step and of shorter ones."""
        for _ in range(lengths):
            trial = self.along(step)
            if accepts(trial):
                return trial
            slope = float(trial.step @ self.gradient)
            bend = trial.value - self.here - slope
            step = step * (min(0.5, max(0.1, -slope / (2 * bend))) if math.isfinite(bend) and bend > 0 else 0.1)
        return None


def objective(sweep: Sweep, controls: Tree, particles: Particles) -> Tensor:
    """J at other controls than those of the sweep."""
    with torch.no_grad():
        cost = rollout(sweep.problem, controls, particles).cost.mean()
    return penalised(sweep.problem, controls, expectation([cost], len(particles))[0])
