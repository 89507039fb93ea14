"""First weights of E-MSA, from the curvature of the problem."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mfoc import tree
from mfoc.distributed import expectation
from mfoc.frozen import Sweep
from mfoc.particles import Particles
from mfoc.pontryagin import evaluate
from mfoc.tree import Tree

SHARE = 1e-2  # the proximal weight as a share of J's curvature: the state's penalty is the better measure of a step


def curvatures(sweep: Sweep, particles: Particles, *, products: int = 3) -> tuple[float, float]:
    """J's largest curvature |v' d2J/du2 v|, and sum_t E |df_t/du v_t|^2 in its direction v.

    Power iteration; the products are differences of gradients, exact enough for a first weight, and cost a gradient
    each where second derivatives would cost two and the memory of a graph.
    """
    problem, controls, gradient = sweep.problem, sweep.controls, sweep.gradient
    size, slope = 1.0 + float(tree.norm(controls)), float(tree.norm(gradient))
    if slope == 0:
        return 1.0, 0.0  # where J does not slope no step is made, whatever the weights
    h = math.sqrt(torch.finfo(sweep.value.dtype).eps) * size
    direction, curvature = gradient, 0.0
    for _ in range(products):
        length = float(tree.norm(direction))
        near = _moved(controls, direction, h / length)
        change = tree.map(lambda a, b: a - b, evaluate(problem, near, particles).gradient, gradient)
        found = float(tree.norm(change)) / h
        if not math.isfinite(found) or found == 0:
            break
        direction, curvature = change, found
    near = _moved(controls, direction, h / float(tree.norm(direction)))
    with torch.no_grad():
        spreads = [
            _spread(
                problem.dynamics(t, sweep.states[t], problem.schedule(near, t), particles.data), sweep.states[t + 1]
            )
            for t in range(problem.stages)
        ]
    spread = float(expectation([torch.stack(spreads).sum()], len(particles))[0]) / h**2
    # Where J hardly bends, steps of many times the size of the controls are no better.
    return _rounded(max(curvature, SHARE * slope / size)), _rounded(spread) if math.isfinite(spread) else 0.0


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
