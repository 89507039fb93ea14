"""The way back through a problem, several stages at a time.

Of a roll-out only the states at the starts of some segments are held. A segment is run again from its start, with a
graph, and differentiated in one call: of T stages in segments of sqrt(T), about 2 sqrt(T) states and the insides of
sqrt(T) stages are in memory at once, for one more forward pass (Griewank 1992, Optim. Methods Softw. 1:35;
Chen et al. 2016, arXiv:1604.06174).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from mfoc import tree
from mfoc.checks import check_integer
from mfoc.derivatives import gradients
from mfoc.errors import InvalidType
from mfoc.particles import Particles
from mfoc.problem import Problem
from mfoc.tree import Tree
from mfoc.validation import check_cost

Link = Callable[[int, Tree], Tree]


def check_recompute(recompute: object) -> None:
    """Refuses what does not say how many stages are evaluated again at a time.

    Raises:
        InvalidType: it is neither a flag nor an integer.
        InvalidValue: it is an integer below 1.
    """
    if isinstance(recompute, bool):
        return
    if not isinstance(recompute, int):
        raise InvalidType(
            f"recompute is {recompute!r}; expected True, False, or how many stages to evaluate again at a time"
        )
    check_integer(1, recompute=recompute)


def cuts(stages: int, recompute: bool | int = True) -> list[range]:
    """The stages 0..T-1 in segments: of about sqrt(T) stages, or of as many as ``recompute`` says."""
    length = recompute if recompute is not True else math.isqrt(stages - 1) + 1  # the root, rounded up
    return [range(start, min(start + length, stages)) for start in range(0, stages, length)]


class Slopes:
    """The gradient in the controls of a sum over stages, taken in segment by segment.

    Args:
        problem: whose controls they are.
        controls: controls whose leaves require grad.

    Raises:
        InvalidType, InvalidValue: the controls are not those of T stages.
    """

    def __init__(self, problem: Problem, controls: Tree) -> None:
        problem.check_stages(controls)
        self.controls, self.leaves = controls, tree.leaves(controls)
        self._starts = [0, *accumulate(len(tree.leaves(u)) for u in controls)] if problem.per_stage else None
        self.found: list[Any] = [None] * len(self.leaves)

    def part(self, stages: range) -> slice:
        """Which of the leaves some stages use."""
        return slice(None) if self._starts is None else slice(self._starts[stages.start], self._starts[stages.stop])

    def add(self, stages: range, slopes: list[Tensor]) -> None:
        """Takes in the slopes of those leaves."""
        known = self.found[self.part(stages)]
        pairs = zip(known, slopes, strict=True)
        self.found[self.part(stages)] = [slope if old is None else old + slope for old, slope in pairs]


def recomputed(
    problem: Problem, controls: Tree, particles: Particles, recompute: bool | int
) -> tuple[Tensor, list[Tensor]]:
    """The cost of each particle ``[N]``, and its mean's gradient in each leaf of the controls, which require grad.

    Args:
        problem: the control problem.
        controls: controls whose leaves require grad.
        particles: the cloud; cost and gradient are of this rank's.
        recompute: see ``mfoc.evaluate``.
    """
    z, slopes, total = particles.data, Slopes(problem, controls), None
    *before, last = cuts(problem.stages, recompute)
    starts = [particles.state]
    with torch.no_grad():
        for part in before:
            x, costs = _through(problem, controls, part, starts[-1], z)
            starts.append(x)
            total = _folded(total, costs)
    # The last segment is run once only: its graph is asked for at once.
    p, costs = _back(problem, slopes, last, [_entry(last, starts.pop())], [], z)
    total = _folded(total, [cost.detach() for cost in costs])
    del costs  # and the graph that they hold
    for part in reversed(before):
        p, _ = _back(problem, slopes, part, [_entry(part, starts.pop())], p, z)
    assert total is not None
    return total, [slope / len(particles) for slope in slopes.found]


def swept(problem: Problem, controls: Tree, states: Sequence[Tree], particles: Particles) -> tuple[list[Tree], Tree]:
    """The costates p_0..p_T, and the gradient of this rank's mean cost, shaped as the controls.

    Each stage is differentiated at the state that is given for it, and the costate of a state is the gradient in a node
    of the graph that is this state's own. So it is right where stages return what they were given, or states share
    tensors, or not every leaf depends on the stage before.

    Args:
        problem: the control problem.
        controls: the controls.
        states: x_0..x_T.
        particles: the cloud.
    """
    slopes = Slopes(problem, tree.detached(controls, requires_grad=True))
    costates: list[Tree] = []
    p: list[Tensor] = []
    for part in reversed(cuts(problem.stages)):
        found = _costates(problem, slopes, part, states, p, particles.data)
        costates += reversed(found)
        p = tree.tensors(found[0])
    return costates[::-1], tree.rebuild(controls, [slope / len(particles) for slope in slopes.found])


def swept_at_once(
    problem: Problem, controls: Tree, particles: Particles
) -> tuple[list[Tree], Tensor, list[Tree], Tree]:
    """States, the cost of each particle ``[N]``, and what ``swept`` finds, in one pass that holds all stages."""
    slopes = Slopes(problem, tree.detached(controls, requires_grad=True))
    path = [tree.detached(particles.state, requires_grad=True)]

    def link(_t: int, moved: Tree) -> Tree:
        path.append(_put(moved, moved))
        return path[-1]

    found, costs = _back(problem, slopes, range(problem.stages), path, [], particles.data, link)
    rest = iter(found)
    costates = [_shaped(x, rest) for x in path]
    cost = _folded(None, [each.detach() for each in costs])
    assert cost is not None
    gradient = tree.rebuild(controls, [slope / len(particles) for slope in slopes.found])
    return [particles.state, *map(tree.detached, path[1:])], cost, costates, gradient


def _costates(
    problem: Problem, slopes: Slopes, stages: range, states: Sequence[Tree], p: list[Tensor], z: Tree
) -> list[Tree]:
    """Those of the states that some stages begin with, and of the last state of all; p is that of what leaves them."""
    path = [tree.detached(states[stages.start], requires_grad=True)]

    def link(t: int, moved: Tree) -> Tree:
        path.append(_put(states[t], moved))
        return path[-1]

    found = iter(_back(problem, slopes, stages, path, p, z, link)[0])
    return [_shaped(x, found) for x in path]


def _through(
    problem: Problem, controls: Tree, stages: range, x: Tree, z: Tree, link: Link | None = None
) -> tuple[Tree, list[Tensor]]:
    """The state that leaves some stages, and their running costs; ``link`` may put another state in a state's place."""
    costs, n = [], len(tree.leaves(x)[0])
    for t in stages:
        u = problem.schedule(controls, t)
        if problem.running_cost is not None:
            costs.append(problem.running_cost(t, x, u, z))
            check_cost(costs[-1], n, f"stage {t}: running_cost")
        x = problem.dynamics(t, x, u, z)
        if link is not None:
            x = link(t + 1, x)
    return x, costs


@torch.enable_grad()
def _back(
    problem: Problem,
    slopes: Slopes,
    stages: range,
    path: list[Tree],
    p: list[Tensor],
    z: Tree,
    link: Link | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """One segment: the gradients in the states of the path (but the one that leaves it), and the costs in it.

    What is differentiated is the sum over particles of the costs and of <p, x>, x the state that leaves; the last
    segment has the terminal cost in place of the latter.
    """
    ends, costs = _through(problem, slopes.controls, stages, path[0], z, link)
    outputs = tree.tensors(ends)
    if stages.stop == problem.stages:
        costs.append(problem.terminal_cost(ends, z))
        check_cost(costs[-1], len(tree.leaves(path[0])[0]), "terminal_cost")
        outputs = []
    elif link is not None:
        path.pop()  # the costate of that state is known
    inputs = [leaf for x in path for leaf in tree.tensors(x)]
    used = slopes.leaves[slopes.part(stages)]
    found = gradients([*outputs, *costs], [*inputs, *used], [*p, *_ones(costs)])
    slopes.add(stages, found[len(inputs) :])
    return found[: len(inputs)], costs


def _entry(stages: range, x: Tree) -> Tree:
    """The state that enters a segment; nobody asks for the derivative in the first of all."""
    return tree.detached(x, requires_grad=stages.start > 0)


def _put(given: Tree, moved: Tree) -> Tree:
    """The state that is given, through which derivatives pass on to the one that the stage led to."""

    def put(x: Tensor, y: Tensor) -> Tensor:
        if not tree.differentiable(x):
            return x
        node: Tensor = _Put.apply(y, x.detach()) if y.requires_grad else tree.free(x)
        return node

    return put(given, moved) if isinstance(given, Tensor) else tree.map(put, given, moved)  # spares a walk each stage


class _Put(torch.autograd.Function):
    """A tensor in the place of another, whose derivatives it takes on."""

    @staticmethod
    def forward(_ctx: Any, _moved: Tensor, given: Tensor) -> Tensor:
        return given.view_as(given)

    @staticmethod
    def backward(_ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:
        return slopes[0], None


def _shaped(x: Tree, found: Any) -> Tree:
    """The next gradients, shaped as a state; zeros where a leaf has none."""
    return tree.map(lambda leaf: next(found) if tree.differentiable(leaf) else torch.zeros_like(leaf), x)


def _ones(costs: list[Tensor]) -> list[Tensor]:
    """Ones for each cost ``[N]``, expanded: products with them run over whole blocks of memory."""
    made: dict[torch.dtype, Tensor] = {}
    for cost in costs:
        if cost.dtype not in made:
            made[cost.dtype] = cost.new_ones(()).expand(cost.shape)
    return [made[cost.dtype] for cost in costs]


def _folded(total: Tensor | None, costs: list[Tensor]) -> Tensor | None:
    """Costs added up from the first on, as ``rollout`` does."""
    for cost in costs:
        total = cost if total is None else total + cost
    return total
