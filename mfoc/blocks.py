"""The (augmented) Hamiltonian of some stages as a function of their controls: its value, its slope."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from mfoc import tree
from mfoc.bounds import RowRegion
from mfoc.derivatives import gradients, refuse_once_differentiable, second_order
from mfoc.distributed import active, expectation
from mfoc.errors import InvalidType
from mfoc.minimisers import Minimiser, Minimum
from mfoc.pontryagin import mean_and_slopes
from mfoc.printing import by_identity
from mfoc.tree import Tree

_NEEDS = "the penalty on costates", "leave it out, EMSA(costate_rho=0), or use Gradient"


@dataclass(frozen=True)
class Penalty:
    """The augmentation of Li, Chen, Tai, E (2018), eq. (20), in the minimum convention, and a proximal term."""

    state: float  # weight rho of rho/2 ||x_(t+1) - f_t(x_t, u)||^2, per particle
    costate: float  # weight of .../2 ||p_t - dH_t/dx(x_t, p_(t+1), u)||^2, per particle
    proximal: float = 0.0  # weight of .../2 ||u - u_now||^2, of each stage

    def derivatives(self) -> AbstractContextManager[None]:
        """Within it the augmented Hamiltonian is evaluated and differentiated: the costate's term holds a derivative.

        Raises:
            InvalidValue: that has no derivative in its turn.
        """
        return second_order(*_NEEDS) if self.costate > 0 else nullcontext()

    @property
    def infeasible(self) -> bool:
        """Whether it weighs states or costates, so that H must be differentiated in the state."""
        return self.state > 0 or self.costate > 0


@dataclass(frozen=True, eq=False)
class Block:
    """Controls that are minimised over together: G independent rows of n numbers."""

    stages: tuple[int, ...]  # row g belongs to stages[g], or the one row to all of them
    start: Tensor  # where the controls are now [G, n]
    per_particle: Callable[[Tensor], Tensor]  # [G, n] -> [G, N], the (augmented) Hamiltonian of each particle
    particles: int  # N on this rank
    restore: Callable[[Tensor], Tree]  # a row [n] as a tree of controls
    proximal: float = 0.0  # weight of .../2 ||u - start||^2, which belongs to no particle
    region: RowRegion | None = None  # where the rows may lie; None where they are free
    within: Callable[[], AbstractContextManager[None]] = nullcontext  # how ``per_particle`` is differentiated
    outcome: Callable[[Tensor], Outcome] | None = None  # what ``per_particle`` is made of, where that is all of it

    def minimised(self, inner: Minimiser, start: Tensor | None = None) -> Minimum:
        """The minimum that ``inner`` finds, from the start of the block or another ``[G, n]``."""
        start = self.start if start is None else start
        if self.region is None:
            return inner.minimise(self.evaluate, start)
        return inner.minimise(self.evaluate, start, self.region)

    def level(self, rows: Tensor) -> Tensor:
        """E H of this rank's particles ``[G]``, with the penalty that bounds may hold."""
        value = self.per_particle(rows).mean(1)
        return value if self.region is None else value + self.region.penalty(rows)

    def evaluate(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """E H ``[G]`` and dE H/du ``[G, n]`` over all ranks; the rows do not interact."""
        with torch.enable_grad(), self.within():
            free = tree.free(rows)
            if self.outcome is None:
                value, (slope,) = mean_and_slopes(self.per_particle(free), [free])
            else:
                value, slope = self.outcome(free).mean_and_slope(free)
        value, slope = expectation([value.detach(), slope], self.particles)
        if self.proximal:
            away = rows - self.start
            value, slope = value + self.proximal / 2 * away.square().sum(1), slope + self.proximal * away
        return value, slope


@dataclass(frozen=True, eq=False)
class Frozen:
    """What the Hamiltonian of a stage needs besides the control; stacked stages have a leading axis more."""

    x: Tree
    p: Tree  # p_(t+1)
    target_x: Tree  # x_(t+1), for the penalty
    target_p: Tree  # p_t, for the penalty

    @staticmethod
    def stacked(some: list[Frozen]) -> Frozen:
        """Stages of equal shapes as one."""
        columns = ([getattr(one, name) for one in some] for name in ("x", "p", "target_x", "target_p"))
        return Frozen(*(tree.map(lambda *leaves: torch.stack(leaves), *column) for column in columns))

    def free(self) -> Frozen:
        """The same with states that derivatives can be taken in."""
        return replace(self, x=tree.detached(self.x, requires_grad=True))


@by_identity
class Outcome(NamedTuple):
    """What some stages led to, in one batch; of states only the leaves that can carry a gradient.

    Attributes:
        costs: running costs ``[G, N]``; None where there are none.
        moved: states that the stages led to ``[G, N, ...]``,
        p: their costates,
        target: and the states that they should be.
        weight: of the penalty on the difference.
    """

    costs: Tensor | None
    moved: list[Tensor]
    p: list[Tensor]
    target: list[Tensor]
    weight: float

    def per_particle(self) -> Tensor:
        """L + <p, f> + weight/2 |f - x|^2 ``[G, N]``."""
        total: Tensor | None = None
        for f, p, x in zip(self.moved, self.p, self.target, strict=True):
            each = _inner(f, p)
            if self.weight:
                gap = f - x
                each = each + self.weight / 2 * _inner(gap, gap)
            each = each.flatten(2).sum(2) if each.dim() > 2 else each
            total = each if total is None else total + each
        if total is None:
            raise InvalidType("the state has no floating-point leaf, so it has no costate")
        return total if self.costs is None else total + self.costs

    def mean_and_slope(self, free: Tensor) -> tuple[Tensor, Tensor]:
        """This rank's mean over the particles ``[G]``, and its slope in ``free``.

        The derivative in f is p + weight (f - x), which is written down: autograd is asked only for what the problem's
        own functions do. The slope is that of ``mean_and_slopes``, to the bit where nothing is penalised.
        """
        outputs, seeds = list(self.moved), list(self.p)
        with torch.no_grad():
            value = self.per_particle()
            if self.weight:
                seeds = [p + self.weight * (f - x) for f, p, x in zip(self.moved, self.p, self.target, strict=True)]
            if self.costs is not None:
                outputs.append(self.costs)
                seeds.append(torch.ones_like(self.costs))
            particles = value.shape[-1]
            if not active():
                seeds = [seed * (1 / particles) for seed in seeds]
        (slope,) = gradients(outputs, [free], seeds)
        return value.mean(1), slope / particles if active() else slope


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b.conj()).real if a.is_complex() else a * b


def augmented(value: Tensor, moved: list[Tensor], at: Frozen, penalty: Penalty) -> Tensor:
    """The augmented Hamiltonian, of the shape of ``value`` (``[N]`` or ``[G, N]``)."""
    # The costate's term costs a derivative of a derivative: only where it counts.
    if penalty.costate:
        refuse_once_differentiable(value, *_NEEDS)
    slope = gradients(value, tree.tensors(at.x), create_graph=True) if penalty.costate else []
    for weight, targets, found in (
        (penalty.state, tree.tensors(at.target_x), moved),
        (penalty.costate, tree.tensors(at.target_p) if penalty.costate else [], slope),
    ):
        for target, came in zip(targets, found, strict=True):
            if tree.differentiable(target):
                gap = target - came
                gap = torch.view_as_real(gap) if gap.is_complex() else gap
                value = value + weight / 2 * gap.square().reshape(*value.shape, -1).sum(-1)
    return value
