"""The Hamiltonian as a function of the controls alone, with states and costates frozen.

With (x, p) frozen the stages do not see one another: min over u of sum_t E H_t splits into one problem a stage. Stages
of equal kind and shape are stacked and evaluated in one batch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import TypeVar

import torch
from torch import Tensor

from mfoc import tree
from mfoc.blocks import Block, Frozen, Outcome, Penalty, augmented
from mfoc.bounds import RowRegion
from mfoc.derivatives import without_fast_path
from mfoc.distributed import expectation
from mfoc.minimisers import Minimiser, Minimum
from mfoc.particles import Particles
from mfoc.pontryagin import Trajectory, adjoint, hamiltonian, hamiltonian_and_next, penalised, rollout
from mfoc.problem import Problem
from mfoc.segments import swept_at_once
from mfoc.tree import Tree

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class _NoStack(Exception):
    """Several stages cannot be evaluated in one batch."""


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
        if _all_alike(problem):
            states, cost, costates, gradient = swept_at_once(problem, controls, particles)
        else:
            with torch.no_grad():
                states, cost = rollout(problem, controls, particles)
            costates, gradient = adjoint(problem, controls, Trajectory(states, cost), particles)
        value, *slopes = expectation([cost.mean(), *tree.leaves(gradient)], len(particles))
        value = penalised(problem, controls, value)
        held = (states, costates, cost, value, tree.rebuild(controls, slopes))
        return cls(problem, controls, particles.data, *held)

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

    def _frozen(self, t: int) -> Frozen:
        return Frozen(self.states[t], self.costates[t + 1], self.states[t + 1], self.costates[t])

    def _signature(self, t: int) -> Hashable:
        """Stages with the same one may be stacked."""
        if self.problem.kind is None:
            return t
        held = tree.leaves([self.controls[t], self.states[t], self.costates[t + 1]])
        return self.problem.kind(t), tuple(tuple(leaf.shape) for leaf in held)

    def _stage_block(self, penalty: Penalty | None, stages: tuple[int, ...]) -> Block:
        first, chosen = stages[0], [self._frozen(t) for t in stages]
        restore = _restorer(self.controls[first])
        stack, like = Frozen.stacked(chosen), chosen[0].x
        infeasible, proximal = _parts(penalty)

        def one(row: Tensor, leaves: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
            x, u, z = tree.rebuild(like, leaves), restore(row), self.data
            moved = self.problem.dynamics(first, x, u, z)
            cost = self.problem.running_cost
            return [] if cost is None else [cost(first, x, u, z)], tree.tensors(moved)

        def alone(rows: Tensor, leaves: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
            costs, moved = one(rows[0], [leaf[0] for leaf in leaves])
            return [cost[None] for cost in costs], [leaf[None] for leaf in moved]

        def together(rows: Tensor, leaves: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
            try:
                with without_fast_path():
                    costs, moved = torch.func.vmap(one)(rows, leaves)
            except Exception as error:  # whatever the user's functions say to tensors that vmap hands them
                raise _NoStack(str(error)) from error
            return costs, moved

        # A single stage is called as it is: not everything a user writes can be batched.
        batched = together if len(stages) > 1 else alone
        p, target = tree.tensors(stack.p), tree.tensors(stack.target_x)

        def outcome(rows: Tensor, x: Tree = stack.x) -> Outcome:
            costs, moved = batched(rows, tree.leaves(x))
            weight = 0.0 if infeasible is None else infeasible.state
            return Outcome(costs[0] if costs else None, moved, p, target, weight)

        def per_particle(rows: Tensor) -> Tensor:
            if not with_costates:
                return outcome(rows).per_particle()
            assert infeasible is not None
            x = tree.detached(stack.x, requires_grad=True)
            with torch.enable_grad():
                found = outcome(rows, x)
                value = found._replace(weight=0.0).per_particle()
                return augmented(value, found.moved, replace(stack, x=x), infeasible)

        with_costates = infeasible is not None and infeasible.costate > 0
        start = torch.stack([tree.ravel(self.controls[t]).detach() for t in stages])
        within = infeasible.derivatives if infeasible is not None and with_costates else nullcontext
        simple = None if with_costates else outcome
        return Block(
            stages, start, per_particle, len(self.cost), restore, proximal, self.region(stages), within, simple
        )

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
                    total = total + augmented(value, tree.tensors(moved), free, infeasible)
            return total[None]

        start = tree.ravel(self.controls).detach()[None]
        stages, region = tuple(range(problem.stages)), problem.region
        rows = None if region is None else region.rows([0], tree.leaves(self.controls))
        within = nullcontext if infeasible is None else infeasible.derivatives
        return Block(stages, start, per_particle, len(self.cost), restore, proximal, rows, within)


def _all_alike(problem: Problem) -> bool:
    """Whether all stages are of one kind: their block holds all of them at a time, and then the sweep may."""
    return problem.per_stage and problem.kind is not None and len({problem.kind(t) for t in range(problem.stages)}) == 1


def _restorer(like: Tree) -> Callable[[Tensor], Tree]:
    old = tree.leaves(like)
    return lambda row: tree.rebuild(like, tree.pieces(row, old))


def _parts(penalty: Penalty | None) -> tuple[Penalty | None, float]:
    """The penalty if it weighs states or costates, and the weight of the proximal term."""
    if penalty is None:
        return None, 0.0
    return penalty if penalty.infeasible else None, penalty.proximal
