"""The Hamiltonian as a function of the controls alone, with states and costates frozen.

With (x, p) frozen the stages do not see one another: min over u of sum_t E H_t splits into one problem a stage. Stages
of equal kind and shape are stacked and evaluated in one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mfoc import _tree
from mfoc._distributed import expectation
from mfoc._tree import Tree
from mfoc.pontryagin import hamiltonian
from mfoc.problem import Problem, per_stage


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
            slope = _tree.leaf_gradients(value, [free])[0]
        value, slope = expectation([value.detach(), slope], self.particles)
        return value, slope


@dataclass(frozen=True)
class _Frozen:
    """What a stage's Hamiltonian needs besides the control."""

    x: Tree
    p: Tree  # p_(t+1)
    target_x: Tree  # x_(t+1), for the penalty
    target_p: Tree  # p_t

    def tensors(self) -> tuple[list[Tensor], Callable[[list[Tensor]], _Frozen]]:
        parts = [self.x, self.p, self.target_x, self.target_p]
        return _tree.leaves(parts), lambda leaves: _Frozen(*_tree.rebuild(parts, leaves))


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
        if _tree.tensors(controls[t]):
            key = _signature(problem, t, controls[t], frozen[t]) if stacked else t
            groups.setdefault(key, []).append(t)
    return [_stage_block(problem, controls, frozen, data, penalty, tuple(stages)) for stages in groups.values()]


def _signature(problem: Problem, t: int, u: Tree, frozen: _Frozen) -> Hashable:
    if problem.kind is None:
        return t
    shapes = tuple(tuple(leaf.shape) for leaf in _tree.leaves([u, frozen.x, frozen.p]))
    return problem.kind(t), shapes


def _restorer(like: Tree) -> Callable[[Tensor], Tree]:
    old = _tree.leaves(like)
    return lambda row: _tree.rebuild(like, _tree.pieces(row, old))


def _stage_block(
    problem: Problem,
    controls: Tree,
    frozen: list[_Frozen],
    data: Tree,
    penalty: Penalty | None,
    stages: tuple[int, ...],
) -> Block:
    first = stages[0]
    restore = _restorer(controls[first])
    start = torch.stack([_tree.ravel(controls[t]).detach() for t in stages])
    size = len(_tree.leaves(frozen[first].x)[0])
    if len(stages) == 1:

        def alone(rows: Tensor) -> Tensor:
            return _augmented(problem, first, restore(rows[0]), frozen[first], data, penalty)[None]

        return Block(stages, start, alone, size, restore)

    pack = frozen[first].tensors()[1]
    stacks = [torch.stack(column) for column in zip(*(frozen[t].tensors()[0] for t in stages), strict=True)]

    def one(row: Tensor, *leaves: Tensor) -> Tensor:
        return _augmented(problem, first, restore(row), pack(list(leaves)), data, penalty)

    batched: Callable[..., Any] = torch.func.vmap(one)
    return Block(stages, start, lambda rows: batched(rows, *stacks), size, restore)


def _joint_block(problem: Problem, controls: Tree, frozen: list[_Frozen], data: Tree, penalty: Penalty | None) -> Block:
    restore = _restorer(controls)

    def total(rows: Tensor) -> Tensor:
        tree = restore(rows[0])
        terms = [
            _augmented(problem, t, problem.schedule(tree, t), frozen[t], data, penalty) for t in range(problem.stages)
        ]
        return torch.stack(terms).sum(0)[None]

    size = len(_tree.leaves(frozen[0].x)[0])
    return Block(tuple(range(problem.stages)), _tree.ravel(controls).detach()[None], total, size, restore)


def _augmented(problem: Problem, t: int, u: Tree, at: _Frozen, z: Tree, penalty: Penalty | None) -> Tensor:
    """H_t, plus the feasibility penalties when there are any: ``[N]``."""
    if penalty is None:
        return hamiltonian(problem, t, at.x, at.p, u, z)
    all_leaves = _tree.leaves(at.x)

    def of_state(floats: list[Tensor]) -> tuple[Tensor, tuple[Tensor, Tree]]:
        stream = iter(floats)
        x = _tree.rebuild(at.x, [next(stream) if _tree.differentiable(leaf) else leaf for leaf in all_leaves])
        moved = problem.dynamics(t, x, u, z)
        value = _tree.inner(moved, at.p)
        if problem.running_cost is not None:
            value = value + problem.running_cost(t, x, u, z)
        return value.sum(), (value, moved)

    floats = _tree.tensors(at.x)
    if not floats:  # a state of integers (tokens) has no costate
        _, (value, moved) = of_state([])
        return value + penalty.state / 2 * _square_distance(at.target_x, moved)
    slope, (value, moved) = torch.func.grad(of_state, has_aux=True)(floats)
    value = value + penalty.state / 2 * _square_distance(at.target_x, moved)
    total: Tensor = value + penalty.costate / 2 * _square_distance(_tree.tensors(at.target_p), slope)
    return total


def _square_distance(left: Tree, right: Tree) -> Tensor:
    gap = _tree.map(lambda a, b: a - b if _tree.differentiable(a) else a, left, right)
    return _tree.inner(gap, gap)
