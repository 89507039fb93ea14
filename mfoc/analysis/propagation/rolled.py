"""The stages of a control problem as blocks: its states are the cuts, its controls the parameters."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from mfoc import tree
from mfoc.analysis.propagation.blocks import Block
from mfoc.analysis.propagation.recording import Point, carries
from mfoc.analysis.propagation.statistics import statistics
from mfoc.errors import InvalidType
from mfoc.pontryagin import rollout_from
from mfoc.populations import as_particles
from mfoc.problem import Problem, controls_of
from mfoc.tree import Tree


def rolled_out(
    problem: Problem[Any], source: Any, controls: Any
) -> tuple[list[Block], Tensor, list[list[Tensor]], int]:
    """Rolls a problem out and takes its stages for blocks.

    Args:
        problem: the problem.
        source: particles, or what a population is made of.
        controls: where it stands, or what has them; the initial guess when None.

    Returns:
        The blocks, J, the leaves of each stage's control, and the number of particles.

    Raises:
        InvalidType: states of integers throughout: they have no derivative.
    """
    particles = as_particles(source)
    problem.validate(particles, None if controls is None else controls_of(controls))
    chosen = tree.detached(problem.controls if controls is None else controls_of(controls), requires_grad=True)
    start = tree.detached(particles.state, requires_grad=True)
    trajectory = rollout_from(problem, chosen, 0, start, particles.data)
    states = [_points(state) for state in trajectory.states]
    blocks, own = [], []
    for t in range(problem.stages):
        if not states[t] or not states[t + 1]:
            continue  # tokens, which a first stage embeds
        blocks.append(Block(f"stage {t}", [], states[t], states[t + 1]))
        own.append([leaf for leaf in tree.tensors(problem.schedule(chosen, t)) if leaf.is_leaf])
    if not blocks:
        raise InvalidType(f"the states are {tree.describe(trajectory.states[-1])}; expected floating-point numbers")
    return blocks, trajectory.cost.mean(), own, len(particles)


def _points(state: Tree) -> list[Point]:
    """A state as places on the graph; the statistics are those of all its tensors together."""
    leaves = [leaf for leaf in tree.leaves(state) if carries(leaf)]
    if not leaves:
        return []
    seen = statistics(leaves, unit_axis=1 if leaves[0].dim() > 3 else -1)
    return [Point(get_gradient_edge(leaf), leaf, leaf._version, seen) for leaf in leaves]
