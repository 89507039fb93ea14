"""J to second order at one control: its slope, and products with its Hessian or with the Gauss-Newton matrix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mfoc import tree
from mfoc.analysis.jacobians import pull, push
from mfoc.derivatives import gradients, refuse_once_differentiable, second_order
from mfoc.distributed import expectation
from mfoc.particles import Particles
from mfoc.pontryagin import Trajectory, rollout
from mfoc.problem import Problem
from mfoc.tree import Tree

Product = Callable[[Tensor], Tensor]

_NEEDS = "NewtonCG, of J,", "use Gradient, EMSA or MSA"


@dataclass(frozen=True, eq=False)
class Expansion:
    """The quadratic model J(u) + <slope, s> + <s, product(s)> / 2 over all ranks; controls are one vector ``[n]``.

    Vectors are in single precision at least: conjugate gradients need the digits.

    Attributes:
        value: J(u).
        size: E |cost|, from which the rounding of J is judged.
        slope: dJ/du ``[n]``.
        product: ``[n] -> [n]``.
    """

    value: Tensor
    size: Tensor
    slope: Tensor
    product: Product


def expand(problem: Problem, controls: Tree, particles: Particles, *, gauss_newton: bool) -> Expansion:
    """J to second order at ``controls``; the graph of the roll-out is kept for the products.

    Raises:
        InvalidValue: an operation of the problem cannot be differentiated twice.
    """
    point = tree.free(tree.ravel(controls))
    n = len(particles)
    with torch.enable_grad(), second_order(*_NEEDS):
        whole = tree.rebuild(controls, tree.pieces(point, tree.leaves(controls)))
        trajectory = rollout(problem, whole, particles)
        cost = trajectory.cost
        refuse_once_differentiable(cost, *_NEEDS)
        # The sum over particles, not the mean, is differentiated: through the law gradients flow between ranks.
        slope = gradients(cost, [point], create_graph=not gauss_newton, retain_graph=True)[0]
        value, size, gradient = expectation([cost.detach().mean(), cost.detach().abs().mean(), slope.detach() / n], n)
        summed = _gauss_newton(problem, whole, trajectory, particles, point) if gauss_newton else _hessian(slope, point)

    wide = torch.promote_types(point.dtype, torch.float32)

    def product(v: Tensor) -> Tensor:
        with torch.enable_grad(), second_order(*_NEEDS):
            return expectation([summed(v.to(point.dtype)).detach() / n], n)[0].to(wide)

    return Expansion(value, size, gradient.to(wide), product)


def _hessian(slope: Tensor, point: Tensor) -> Product:
    """Products with the Hessian of the summed cost, a backward pass through the backward pass each."""
    return lambda v: gradients(slope, [point], [v], retain_graph=True)[0]


def _gauss_newton(
    problem: Problem, controls: Tree, trajectory: Trajectory, particles: Particles, point: Tensor
) -> Product:
    """Products M' C M v: M linearises states and stage controls in the controls, C is the Hessian of the costs in them.

    Schraudolph (2002), "Fast curvature matrix-vector products for second-order gradient descent", Neural Computation
    14(7), sec. 3, whose one loss is here the running and the terminal costs together.
    """
    stages = range(problem.stages)
    reached = [trajectory.states[1:], [problem.schedule(controls, t) for t in stages]]
    outputs = tree.tensors(reached)
    states, used = free = tree.detached(reached, requires_grad=True)
    total, z = problem.terminal_cost(states[-1], particles.data).sum(), particles.data
    if problem.running_cost is not None:
        before = [trajectory.states[0], *states]
        total = total + torch.stack([problem.running_cost(t, before[t], used[t], z).sum() for t in stages]).sum()
    moved = tree.tensors(free)
    slopes = gradients(total, moved, create_graph=True)

    def product(v: Tensor) -> Tensor:
        tangents = push(outputs, point, v)
        return pull(outputs, point, gradients(slopes, moved, tangents, retain_graph=True))[0]

    return product
