"""First weights of E-MSA, from the curvature of the problem."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mfoc import tree
from mfoc.distributed import expectation
from mfoc.frozen import Sweep
from mfoc.particles import Particles
from mfoc.pontryagin import evaluate
from mfoc.printing import by_identity
from mfoc.tree import Tree

SHARE = 1e-2  # the proximal weight as a share of J's curvature: the state's penalty is the better measure of a step


@by_identity
class Curvature(NamedTuple):
    """How the problem bends along its gradient, and what was learned on the way.

    Attributes:
        largest: an estimate of J's largest curvature |v' d2J/du2 v|, from below.
        spread: sum_t E |df_t/du v_t|^2 in its direction v.
        steps: directions ``[n]`` along which J'' was asked for; none where J does not slope.
        bends: J'' times each.
    """

    largest: float
    spread: float
    steps: list[Tensor]
    bends: list[Tensor]


def curvature(sweep: Sweep, particles: Particles, *, products: int = 3) -> Curvature:
    """Power iteration from the gradient; ``v`` is what it ends with.

    The products are differences of gradients, exact enough for a first weight, and cost a gradient each where second
    derivatives would cost two and the memory of a graph. Weights that are adapted are well served by one.
    """
    problem, controls, gradient = sweep.problem, sweep.controls, sweep.gradient
    size, slope = 1.0 + float(tree.norm(controls)), float(tree.norm(gradient))
    if slope == 0:
        return Curvature(1.0, 0.0, [], [])  # where J does not slope no step is made, whatever the weights
    h = math.sqrt(torch.finfo(sweep.value.dtype).eps) * size
    steps: list[Tensor] = []
    bends: list[Tensor] = []
    direction, length, largest = gradient, slope, 0.0
    for _ in range(products):
        near = _moved(controls, direction, h / length)
        change = tree.map(lambda a, b: a - b, evaluate(problem, near, particles).gradient, gradient)
        found = float(tree.norm(change))
        if not math.isfinite(found) or found == 0:
            break
        steps, bends = [*steps, tree.ravel(direction) / length], [*bends, tree.ravel(change) / h]
        direction, length, largest = change, found, found / h
    spread = _spreads(sweep, particles, _moved(controls, direction, h / length)) / h**2
    # Where J hardly bends, steps of many times the size of the controls are no better.
    largest = _rounded(max(largest, SHARE * slope / size))
    return Curvature(largest, _rounded(spread) if math.isfinite(spread) else 0.0, steps, bends)


def _spreads(sweep: Sweep, particles: Particles, near: Tree) -> float:
    """sum_t E |f_t(x_t, u_t) - x_(t+1)|^2 at other controls than those of the sweep."""
    problem, states, z = sweep.problem, sweep.states, particles.data
    with torch.no_grad():
        each = [
            _spread(problem.dynamics(t, states[t], problem.schedule(near, t), z), states[t + 1])
            for t in range(problem.stages)
        ]
    return float(expectation([torch.stack(each).sum()], len(particles))[0])


def _rounded(number: float) -> float:
    """To seven bits, so that a weight does not carry on the rounding of the differences it is made of."""
    mantissa, exponent = math.frexp(number)
    return math.ldexp(round(128 * mantissa) / 128, exponent)


def _moved(controls: Tree, direction: Tree, length: float) -> Tree:
    return tree.map(lambda u, v: u + length * v, controls, direction)


def _spread(x: Tree, y: Tree) -> Tensor:
    """E |x - y|^2 over this rank's particles."""
    pairs = [(a, b) for a, b in zip(tree.leaves(x), tree.leaves(y), strict=True) if tree.differentiable(a)]
    return torch.stack([(a - b).abs().square().sum() / len(a) for a, b in pairs]).sum()
