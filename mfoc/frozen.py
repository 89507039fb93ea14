"""The Hamiltonian as a function of the controls alone, with states and costates frozen.

With (x, p) frozen the stages do not see one another: min over u of sum_t E H_t splits into one problem a stage. Stages
of equal kind and shape are stacked and evaluated in one batch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from mfoc import tree
from mfoc.derivatives import gradients
from mfoc.distributed import expectation
from mfoc.pontryagin import hamiltonian, hamiltonian_and_next
from mfoc.problem import Problem, per_stage
from mfoc.tree import Tree

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


@dataclass(frozen=True)
class Penalty:
    """The augmentation of Li, Chen, Tai, E (2018), eq. (20), in the minimum convention.

    Attributes:
        state: weight rho of rho/2 ||x_(t+1) - f_t(x_t, u)||^2, per particle.
        costate: weight of .../2 ||p_t - dH_t/dx(x_t, p_(t+1), u)||^2, per particle.
    """

    state: float
    costate: float


@dataclass(frozen=True)
class Block:
    """Controls that are minimised over together: G independent rows of n numbers.

    Attributes:
        stages: the stages of the block; row g belongs to ``stages[g]``, or the one row to all of them.
        start: where the controls are now ``[G, n]``.
        per_particle: ``[G, n] -> [G, N]``, the (augmented) Hamiltonian of each particle.
        particles: N on this rank.
        restore: a row ``[n]`` as a tree of controls.
    """

    stages: tuple[int, ...]
    start: Tensor
    per_particle: Callable[[Tensor], Tensor]
    particles: int
    restore: Callable[[Tensor], Tree]

    def evaluate(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """E H ``[G]`` and dE H/du ``[G, n]`` over all ranks; the rows do not interact."""
        with torch.enable_grad():
            free = rows.detach().requires_grad_()
            value = self.per_particle(free).mean(1)
            slope = gradients(value, [free])[0]
        value, slope = expectation([value.detach(), slope], self.particles)
        return value, slope


@dataclass(frozen=True)
class _Frozen:
    """What the Hamiltonian of a stage needs besides the control; stacked stages have a leading axis more."""

    x: Tree
    p: Tree  # p_(t+1)
    target_x: Tree  # x_(t+1), for the penalty
    target_p: Tree  # p_t, for the penalty

    def free(self) -> _Frozen:
        """The same with states that derivatives can be taken in."""
        return _Frozen(tree.detached(self.x, requires_grad=True), self.p, self.target_x, self.target_p)


def blocks(
    problem: Problem,
    controls: Tree,
    states: list[Tree],
    costates: list[Tree],
    data: Tree,
    *,
    penalty: Penalty | None = None,
    stacked: bool = True,
) -> list[Block]:
    """The inner problems of one sweep.

    Args:
        problem: the control problem.
        controls: the present controls.
        states: x_0..x_T.
        costates: p_0..p_T.
        data: z.
        penalty: augment the Hamiltonian.
        stacked: put stages of equal kind into one block; else each stage is a block.

    Returns:
        A block for each group of stages with a control; a single block when the schedule is not per-stage.
    """
    frozen = [_Frozen(states[t], costates[t + 1], states[t + 1], costates[t]) for t in range(problem.stages)]
    if problem.schedule is not per_stage:
        return [_joint_block(problem, controls, frozen, data, penalty)]
    groups: dict[Hashable, list[int]] = {}
    for t in range(problem.stages):
        if any(leaf.numel() for leaf in tree.tensors(controls[t])):
            key = _signature(problem, t, controls[t], frozen[t]) if stacked else t
            groups.setdefault(key, []).append(t)
    return [_stage_block(problem, controls, frozen, data, penalty, tuple(stages)) for stages in groups.values()]


def each_block(
    work: Callable[[Block], Result],
    problem: Problem,
    controls: Tree,
    states: list[Tree],
    costates: list[Tree],
    data: Tree,
    *,
    penalty: Penalty | None = None,
) -> Iterator[tuple[Block, Result]]:
    """Applies ``work`` to each of ``blocks(...)``; a stack that cannot be batched is taken apart first.

    Control flow that depends on values, for one, runs on a single stage and not under ``torch.func.vmap``.
    """
    frozen = (problem, controls, states, costates, data)
    for block in blocks(*frozen, penalty=penalty):
        try:
            yield block, work(block)
        except RuntimeError as error:
            if len(block.stages) == 1 or "vmap" not in str(error):
                raise
            logger.info("stages %s cannot be evaluated in one batch; taking them one by one", block.stages)
            for single in blocks(*frozen, penalty=penalty, stacked=False):
                if single.stages[0] in block.stages:
                    yield single, work(single)


def _signature(problem: Problem, t: int, u: Tree, frozen: _Frozen) -> Hashable:
    if problem.kind is None:
        return t
    shapes = tuple(tuple(leaf.shape) for leaf in tree.leaves([u, frozen.x, frozen.p]))
    return problem.kind(t), shapes


def _restorer(like: Tree) -> Callable[[Tensor], Tree]:
    old = tree.leaves(like)
    return lambda row: tree.rebuild(like, tree.pieces(row, old))


def _stage_block(
    problem: Problem,
    controls: Tree,
    frozen: list[_Frozen],
    data: Tree,
    penalty: Penalty | None,
    stages: tuple[int, ...],
) -> Block:
    first, chosen = stages[0], [frozen[t] for t in stages]
    restore = _restorer(controls[first])
    start = torch.stack([tree.ravel(controls[t]).detach() for t in stages])
    stack = _Frozen(*(_stacked([getattr(f, name) for f in chosen]) for name in ("x", "p", "target_x", "target_p")))
    like = [chosen[0].x, chosen[0].p]

    def one(row: Tensor, leaves: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        x, p = tree.rebuild(like, leaves)
        value, moved = hamiltonian_and_next(problem, first, x, p, restore(row), data)
        return value, tree.leaves(moved)

    def alone(rows: Tensor, leaves: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        value, moved = one(rows[0], [leaf[0] for leaf in leaves])
        return value[None], [leaf[None] for leaf in moved]

    # A single stage is called as it is: not everything a user writes can be batched.
    batched: Callable[..., tuple[Tensor, list[Tensor]]] = torch.func.vmap(one) if len(stages) > 1 else alone

    def per_particle(rows: Tensor) -> Tensor:
        if penalty is None:
            return batched(rows, tree.leaves([stack.x, stack.p]))[0]
        free = stack.free()
        with torch.enable_grad():
            value, moved = batched(rows, tree.leaves([free.x, free.p]))
            return _penalised(value, moved, free, penalty)

    return Block(stages, start, per_particle, len(tree.leaves(chosen[0].x)[0]), restore)


def _joint_block(problem: Problem, controls: Tree, frozen: list[_Frozen], data: Tree, penalty: Penalty | None) -> Block:
    restore = _restorer(controls)

    def per_particle(rows: Tensor) -> Tensor:
        whole = restore(rows[0])
        total = torch.zeros((), dtype=rows.dtype, device=rows.device)
        for t, at in enumerate(frozen):
            u = problem.schedule(whole, t)
            if penalty is None:
                total = total + hamiltonian(problem, t, at.x, at.p, u, data)
                continue
            free = at.free()
            with torch.enable_grad():
                value, moved = hamiltonian_and_next(problem, t, free.x, free.p, u, data)
                total = total + _penalised(value, tree.leaves(moved), free, penalty)
        return total[None]

    size = len(tree.leaves(frozen[0].x)[0])
    return Block(tuple(range(problem.stages)), tree.ravel(controls).detach()[None], per_particle, size, restore)


def _stacked(trees: list[Tree]) -> Tree:
    return tree.map(lambda *leaves: torch.stack(leaves), *trees)


def _penalised(value: Tensor, moved: list[Tensor], at: _Frozen, penalty: Penalty) -> Tensor:
    """The augmented Hamiltonian, of the shape of ``value`` (``[N]`` or ``[G, N]``)."""
    slope = gradients(value, tree.tensors(at.x), create_graph=True)
    for weight, targets, found in (
        (penalty.state, tree.leaves(at.target_x), moved),
        (penalty.costate, tree.tensors(at.target_p), slope),
    ):
        for target, came in zip(targets, found, strict=True):
            if tree.differentiable(target):
                gap = target - came
                gap = torch.view_as_real(gap) if gap.is_complex() else gap
                value = value + weight / 2 * gap.square().reshape(*value.shape, -1).sum(-1)
    return value
