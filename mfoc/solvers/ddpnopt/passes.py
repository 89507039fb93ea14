"""A forward and a backward pass at the controls a step starts from, whose graph is kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mfoc import tree
from mfoc.derivatives import gradients, reached
from mfoc.distributed import expectation
from mfoc.errors import InvalidValue
from mfoc.particles import Particles
from mfoc.pontryagin import rollout
from mfoc.problem import Problem
from mfoc.tree import Tree


@dataclass(frozen=True, eq=False)
class Passes:
    """What the passes found; the expectations are over all ranks.

    Attributes:
        controls: u_0..u_(T-1), leaves of the graph.
        states: x_0..x_T in the graph.
        costates: p_0..p_T; None where no control comes before.
        value: J.
        gradients: E dH_t/du, leaf by leaf.
        running: this rank's mean of dL_t/du, leaf by leaf; empty without running cost.
    """

    controls: list[Tree]
    states: list[Tree]
    costates: list[Tree]
    value: Tensor
    gradients: list[list[Tensor]]
    running: list[list[Tensor]]

    @classmethod
    def at(cls, problem: Problem, controls: Tree, particles: Particles) -> Passes:
        """The passes of a per-stage problem.

        Raises:
            InvalidValue: a running cost depends on the state.
        """
        n, free = len(particles), tree.detached(list(controls), requires_grad=True)
        with torch.enable_grad():
            states, cost = rollout(problem, free, particles)
            running = [_running(problem, t, states[t], u, particles) for t, u in enumerate(free)]
        first = next(t for t, u in enumerate(free) if tree.leaves(u))
        # Nothing is differentiated in the states that no control has moved.
        moved = [leaf for x in states[first + 1 :] for leaf in tree.tensors(x)]
        found = gradients(cost, [*moved, *tree.leaves(free)], retain_graph=True)
        slopes = iter(found[: len(moved)])
        costates = [None if t <= first else _filled(x, slopes) for t, x in enumerate(states)]
        value, *means = expectation([cost.detach().mean(), *(leaf / n for leaf in found[len(moved) :])], n)
        by_leaf = iter(means)
        return cls(free, states, costates, value, [[next(by_leaf) for _ in tree.leaves(u)] for u in free], running)


def _running(problem: Problem, t: int, x: Tree, u: Tree, particles: Particles) -> list[Tensor]:
    if problem.running_cost is None:
        return []
    apart = tree.detached(x, requires_grad=True)
    cost = problem.running_cost(t, apart, u, particles.data)
    if any(reached([cost], tree.tensors(apart))):
        raise InvalidValue(
            f"stage {t}: running_cost depends on the state; the curvature of a particle's cost-to-go is then not of "
            "rank one; DDPNOpt takes running costs of the control alone, such as mfoc.weight_decay. Use Gradient"
        )
    return gradients(cost.mean(), tree.leaves(u), retain_graph=True)


def _filled(like: Tree, slopes: Iterator[Tensor]) -> Tree:
    """A costate: a slope for each leaf, zero where one carries no gradient."""
    return tree.map(lambda leaf: next(slopes) if tree.differentiable(leaf) else torch.zeros_like(leaf), like)
