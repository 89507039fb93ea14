"""The Hamiltonian as a function of the controls alone, with states and costates frozen.

With (x, p) frozen the stages do not see one another: min over u of sum_t E H_t splits into one problem a stage. Stages
of equal kind and shape are stacked and evaluated in one batch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import TypeVar

import torch
from torch import Tensor

from mfoc import tree
from mfoc.bounds import RowRegion
from mfoc.derivatives import gradients, refuse_once_differentiable, second_order, without_fast_path
from mfoc.distributed import expectation
from mfoc.minimisers import Minimiser, Minimum
from mfoc.particles import Particles
from mfoc.pontryagin import adjoint, hamiltonian, hamiltonian_and_next, mean_and_slopes, penalised, rollout
from mfoc.problem import Problem
from mfoc.tree import Tree

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


_NEEDS = "the penalty on costates", "leave it out, EMSA(costate_rho=0), or use Gradient"


class _NoStack(Exception):
    """Several stages cannot be evaluated in one batch."""


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
            free = rows.detach().requires_grad_()
            value, (slope,) = mean_and_slopes(self.per_particle(free), [free])
        value, slope = expectation([value.detach(), slope], self.particles)
        if self.proximal:
            away = rows - self.start
            value, slope = value + self.proximal / 2 * away.square().sum(1), slope + self.proximal * away
        return value, slope


@dataclass(frozen=True, eq=False)
class _Frozen:
    """What the Hamiltonian of a stage needs besides the control; stacked stages have a leading axis more."""

    x: Tree
    p: Tree  # p_(t+1)
    target_x: Tree  # x_(t+1), for the penalty
    target_p: Tree  # p_t, for the penalty

    @staticmethod
    def stacked(some: list[_Frozen]) -> _Frozen:
        """Stages of equal shapes as one."""
        columns = ([getattr(one, name) for one in some] for name in ("x", "p", "target_x", "target_p"))
        return _Frozen(*(tree.map(lambda *leaves: torch.stack(leaves), *column) for column in columns))

    def free(self) -> _Frozen:
        """The same with states that derivatives can be taken in."""
        return replace(self, x=tree.detached(self.x, requires_grad=True))


@dataclass(frozen=True, eq=False)
class Sweep:
    """One forward and one backward sweep: the states and costates that stay frozen while H is minimised over u."""

    problem: Problem
    controls: Tree
    data: Tree
    states: list[Tree]  # x_0..x_T
    costates: list[Tree]  # p_0..p_T
    cost: Tensor  # of each particle [N]
    value: Tensor  # J, over all ranks
    gradient: Tree  # dJ/du shaped as the controls, over all ranks

    @classmethod
    def at(cls, problem: Problem, controls: Tree, particles: Particles) -> Sweep:
        """The sweeps at one control."""
        with torch.no_grad():
            trajectory = rollout(problem, controls, particles)
        costates, gradient = adjoint(problem, controls, trajectory, particles)
        value, *slopes = expectation([trajectory.cost.mean(), *tree.leaves(gradient)], len(particles))
        value = penalised(problem, controls, value)
        held = (trajectory.states, costates, trajectory.cost)
        return cls(problem, controls, particles.data, *held, value, tree.rebuild(controls, slopes))

    def minimised(self, inner: Minimiser, penalty: Penalty | None = None) -> tuple[Tree, list[Minimum]]:
        """New controls, where ``inner`` finds the (augmented) Hamiltonian least, and what it found in each block."""
        return self.joined(self.each(lambda block: block.minimised(inner), penalty))

    def joined(self, pairs: Iterable[tuple[Block, Minimum]]) -> tuple[Tree, list[Minimum]]:
        """Controls made of what was found in each block; stages that are in none keep theirs."""
        found = list(pairs)
        minima = [minimum for _, minimum in found]
        if not self.problem.per_stage:
            ((block, minimum),) = found
            return block.restore(minimum.point[0]), minima
        new = list(self.controls)
        for block, minimum in found:
            for stage, row in zip(block.stages, minimum.point, strict=True):
                new[stage] = block.restore(row)
        return tree.rebuild(self.controls, tree.leaves(new)), minima

    def each(self, work: Callable[[Block], Result], penalty: Penalty | None = None) -> Iterator[tuple[Block, Result]]:
        """Applies ``work`` to each of ``blocks()``; a stack that cannot be evaluated is taken apart.

        Not everything that runs on a single stage runs under ``torch.func.vmap``: control flow that depends on values
        does not. (Nor does it where memory runs out; its stages one by one may fit.) What fails on a single stage, too,
        is an error of the problem.
        """
        for block in self.blocks(penalty):
            try:
                yield block, work(block)
            except _NoStack as error:
                logger.info("stages %s cannot be evaluated in one batch (%s); one by one", block.stages, error)
                for stage in block.stages:
                    single = self._stage_block(penalty, (stage,))
                    yield single, work(single)

    def blocks(self, penalty: Penalty | None = None) -> list[Block]:
        """A block for each group of stages of equal kind; a single one when the stages share their control."""
        if not self.problem.per_stage:
            return [self._joint_block(penalty)]
        groups: dict[Hashable, list[int]] = {}
        for t in range(self.problem.stages):
            if any(leaf.numel() for leaf in tree.tensors(self.controls[t])):
                groups.setdefault(self._signature(t), []).append(t)
        return [self._stage_block(penalty, tuple(stages)) for stages in groups.values()]

    def _frozen(self, t: int) -> _Frozen:
        return _Frozen(self.states[t], self.costates[t + 1], self.states[t + 1], self.costates[t])

    def _signature(self, t: int) -> Hashable:
        """Stages with the same one may be stacked."""
        if self.problem.kind is None:
            return t
        held = tree.leaves([self.controls[t], self.states[t], self.costates[t + 1]])
        return self.problem.kind(t), tuple(tuple(leaf.shape) for leaf in held)

    def _stage_block(self, penalty: Penalty | None, stages: tuple[int, ...]) -> Block:
        first, chosen = stages[0], [self._frozen(t) for t in stages]
        restore = _restorer(self.controls[first])
        stack, like = _Frozen.stacked(chosen), [chosen[0].x, chosen[0].p]

        def one(row: Tensor, leaves: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
            x, p = tree.rebuild(like, leaves)
            value, moved = hamiltonian_and_next(self.problem, first, x, p, restore(row), self.data)
            return value, tree.leaves(moved)

        def alone(rows: Tensor, leaves: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
            value, moved = one(rows[0], [leaf[0] for leaf in leaves])
            return value[None], [leaf[None] for leaf in moved]

        def together(rows: Tensor, leaves: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
            try:
                with without_fast_path():
                    value, moved = torch.func.vmap(one)(rows, leaves)
            except Exception as error:  # whatever the user's functions say to tensors that vmap hands them
                raise _NoStack(str(error)) from error
            return value, moved

        # A single stage is called as it is: not everything a user writes can be batched.
        batched = together if len(stages) > 1 else alone

        infeasible, proximal = _parts(penalty)

        def per_particle(rows: Tensor) -> Tensor:
            if not infeasible:
                return batched(rows, tree.leaves([stack.x, stack.p]))[0]
            free = stack.free()
            with torch.enable_grad():
                value, moved = batched(rows, tree.leaves([free.x, free.p]))
                return _penalised(value, moved, free, infeasible)

        start = torch.stack([tree.ravel(self.controls[t]).detach() for t in stages])
        within = nullcontext if infeasible is None else infeasible.derivatives
        return Block(stages, start, per_particle, len(self.cost), restore, proximal, self.region(stages), within)

    def region(self, stages: tuple[int, ...]) -> RowRegion | None:
        """Where the controls of these stages may lie, each a row; None where they are free."""
        if self.problem.region is None:
            return None
        return self.problem.region.rows([self._starts[t] for t in stages], tree.leaves(self.controls[stages[0]]))

    @cached_property
    def _starts(self) -> list[int]:
        """The place of each stage's first leaf among those of the controls."""
        return [0, *accumulate(len(tree.leaves(u)) for u in self.controls)]

    def _joint_block(self, penalty: Penalty | None) -> Block:
        problem, restore = self.problem, _restorer(self.controls)
        infeasible, proximal = _parts(penalty)

        def per_particle(rows: Tensor) -> Tensor:
            whole = restore(rows[0])
            total = torch.zeros((), dtype=rows.dtype, device=rows.device)
            for t in range(problem.stages):
                at, u = self._frozen(t), problem.schedule(whole, t)
                if not infeasible:
                    total = total + hamiltonian(problem, t, at.x, at.p, u, self.data)
                    continue
                free = at.free()
                with torch.enable_grad():
                    value, moved = hamiltonian_and_next(problem, t, free.x, free.p, u, self.data)
                    total = total + _penalised(value, tree.leaves(moved), free, infeasible)
            return total[None]

        start = tree.ravel(self.controls).detach()[None]
        stages, region = tuple(range(problem.stages)), problem.region
        rows = None if region is None else region.rows([0], tree.leaves(self.controls))
        within = nullcontext if infeasible is None else infeasible.derivatives
        return Block(stages, start, per_particle, len(self.cost), restore, proximal, rows, within)


def _restorer(like: Tree) -> Callable[[Tensor], Tree]:
    old = tree.leaves(like)
    return lambda row: tree.rebuild(like, tree.pieces(row, old))


def _parts(penalty: Penalty | None) -> tuple[Penalty | None, float]:
    """The penalty if it weighs states or costates, and the weight of the proximal term."""
    if penalty is None:
        return None, 0.0
    return penalty if penalty.infeasible else None, penalty.proximal


def _penalised(value: Tensor, moved: list[Tensor], at: _Frozen, penalty: Penalty) -> Tensor:
    """The augmented Hamiltonian, of the shape of ``value`` (``[N]`` or ``[G, N]``)."""
    # The costate's term costs a derivative of a derivative: only where it counts.
    if penalty.costate:
        refuse_once_differentiable(value, *_NEEDS)
    slope = gradients(value, tree.tensors(at.x), create_graph=True) if penalty.costate else []
    for weight, targets, found in (
        (penalty.state, tree.leaves(at.target_x), moved),
        (penalty.costate, tree.tensors(at.target_p) if penalty.costate else [], slope),
    ):
        for target, came in zip(targets, found, strict=True):
            if tree.differentiable(target):
                gap = target - came
                gap = torch.view_as_real(gap) if gap.is_complex() else gap
                value = value + weight / 2 * gap.square().reshape(*value.shape, -1).sum(-1)
    return value
