"""The two passes of a step along the controls it starts from: forward with a graph a stage, and back through them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mfoc import tree
from mfoc.derivatives import gradients, reached
from mfoc.distributed import expectation
from mfoc.errors import InvalidValue
from mfoc.particles import Particles
from mfoc.problem import Problem, check_cost
from mfoc.tree import Tree


@dataclass(frozen=True, eq=False)
class Stage:
    """One stage at the controls a step starts from, its graph kept: pulling back through it evaluates nothing again."""

    x: Tree  # x_t, leaves of the graph from the second stage with controls on
    u: Tree  # u_t, leaves of the graph
    moved: Tree  # f_t(x_t, u_t)
    decay: list[Tensor]  # sum over the particles of dL_t/du, leaf by leaf; empty without running cost

    @property
    def leaves(self) -> list[Tensor]:
        """The leaves of u_t."""
        return tree.tensors(self.u)

    def pulled_back(self, p: Tree, inputs: list[Tensor]) -> list[Tensor]:
        """sum_i d<p_i, f_i> / d input, for p = p_(t+1)."""
        return gradients(tree.tensors(self.moved), inputs, tree.tensors(p), retain_graph=True)

    def slope(self, p: Tree, weights: Tensor) -> list[Tensor]:
        """This rank's mean of w_i f_u' p_i + L_u, leaf by leaf; one backward pass, of weighted costates."""
        weighted = tree.map(lambda leaf: leaf * _beside(weights, leaf) if tree.differentiable(leaf) else leaf, p)
        return self.mean(self.pulled_back(weighted, self.leaves), len(weights))

    def mean(self, sums: list[Tensor], particles: int) -> list[Tensor]:
        """This rank's mean of dH/du, from the sum of that of <p, f>."""
        totals = [a + b for a, b in zip(sums, self.decay, strict=True)] if self.decay else sums
        return [total / particles for total in totals]


@dataclass(frozen=True, eq=False)
class Passes:
    """What the passes found; the expectations are over all ranks."""

    stages: list[Stage]
    costates: list[Tree]  # p_0..p_T; those before the second stage with controls, which nothing needs, are None
    value: Tensor
    gradients: list[list[Tensor]]  # E dH_t/du, leaf by leaf


def both(problem: Problem, controls: Tree, particles: Particles, first: int) -> Passes:
    """The forward and the backward pass.

    Args:
        problem: a per-stage problem.
        controls: where to evaluate.
        particles: the cloud.
        first: the first stage with controls: nothing is differentiated in the states up to there.

    Raises:
        InvalidValue: a running cost depends on the state.
    """
    n, total, stages = len(particles), None, []
    x = particles.state
    with torch.enable_grad():
        for t in range(problem.stages):
            x = tree.detached(x, requires_grad=t > first)
            u = tree.detached(controls[t], requires_grad=True)
            cost, decay = _running(problem, t, x, u, particles)
            if cost is not None:
                total = cost if total is None else total + cost
            stages.append(Stage(x, u, problem.dynamics(t, x, u, particles.data), decay))
            x = stages[-1].moved
        x = tree.detached(x, requires_grad=True)
        cost = problem.terminal_cost(x, particles.data)
        check_cost(cost, n, "terminal_cost")
        costates, slopes = _back(stages, tree.rebuild(x, _filled(x, gradients(cost, tree.tensors(x)))), first, n)
    value = cost.detach() if total is None else total + cost.detach()
    value, *means = expectation([value.mean(), *(leaf for slope in slopes for leaf in slope)], n)
    found = iter(means)
    return Passes(stages, costates, value, [[next(found) for _ in slope] for slope in slopes])


def _back(stages: list[Stage], p: Tree, first: int, n: int) -> tuple[list[Tree], list[list[Tensor]]]:
    """p_0..p_T and this rank's E dH_t/du."""
    costates, slopes = [p], list[list[Tensor]]()
    for t in reversed(range(len(stages))):
        stage, inputs = stages[t], tree.tensors(stages[t].x) if t > first else []
        found = stage.pulled_back(costates[0], [*inputs, *stage.leaves]) if t >= first else []
        costates.insert(0, tree.rebuild(stage.x, _filled(stage.x, found[: len(inputs)])) if t > first else None)
        slopes.insert(0, stage.mean(found[len(inputs) :], n))
    return costates, slopes


def _running(problem: Problem, t: int, x: Tree, u: Tree, particles: Particles) -> tuple[Tensor | None, list[Tensor]]:
    """L_t of each particle, and the sum of its gradients in the control."""
    if problem.running_cost is None:
        return None, []
    free = tree.detached(x, requires_grad=True)
    cost = problem.running_cost(t, free, u, particles.data)
    check_cost(cost, len(particles), f"stage {t}: running_cost")
    if any(reached([cost], tree.tensors(free))):
        raise InvalidValue(
            f"stage {t}: running_cost depends on the state; the curvature of a particle's cost-to-go is then not of "
            "rank one; DDPNOpt takes running costs of the control alone, such as mfoc.weight_decay. Use Gradient"
        )
    return cost.detach(), gradients(cost, tree.tensors(u))


def _filled(like: Tree, found: list[Tensor]) -> list[Tensor]:
    """The leaves found, with zeros where a leaf carries no gradient."""
    given = iter(found)
    return [next(given) if tree.differentiable(leaf) else torch.zeros_like(leaf) for leaf in tree.leaves(like)]


def _beside(weights: Tensor, leaf: Tensor) -> Tensor:
    return weights.to(leaf.dtype).view(-1, *(1 for _ in leaf.shape[1:]))
