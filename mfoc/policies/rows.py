"""Whether a problem takes its control row by row, one a particle: what a policy returns."""

from __future__ import annotations

import torch
from torch import Tensor

from mfoc import tree
from mfoc.errors import InvalidValue
from mfoc.particles import Particles
from mfoc.problem import Problem
from mfoc.tree import Tree


@torch.no_grad()
def check_rows(problem: Problem, particles: Particles) -> None:
    """Refuses a problem that says another thing of equal rows of control than of the one that is shared."""
    x, z, n = particles.state, particles.data, len(particles)
    for t in range(problem.stages):
        # At an initial guess of zero, as is often made, nothing would be seen.
        u = tree.map(_elsewhere, problem.schedule(problem.controls, t))
        rows = tree.map(lambda leaf: leaf.expand(n, *leaf.shape), u)
        if problem.running_cost is not None:
            shared, each = (problem.running_cost(t, x, control, z) for control in (u, rows))
            _check_alike(shared, each, f"running_cost of stage {t}")
        moved = problem.dynamics(t, x, u, z)
        _check_alike(moved, problem.dynamics(t, x, rows, z), f"dynamics of stage {t}")
        x = moved


def _elsewhere(leaf: Tensor) -> Tensor:
    waves = torch.cos(torch.arange(1, leaf.numel() + 1, dtype=leaf.dtype, device=leaf.device))
    return leaf + 0.1 * (1 + leaf.abs()) * waves.view(leaf.shape)


def _check_alike(shared: Tree, rows: Tree, what: str) -> None:
    for a, b in zip(tree.tensors(shared), tree.tensors(rows), strict=True):
        slack = torch.finfo(a.dtype).eps ** 0.5
        size = float(a.abs().nan_to_num(0.0, 0.0, 0.0).max()) if a.numel() else 0.0
        if a.shape != b.shape or not torch.allclose(a, b, rtol=slack, atol=slack * size, equal_nan=True):
            raise InvalidValue(
                f"{what}: a control of equal rows, u [N, ...], gives another value than the one that all particles "
                "share. A policy's control has one row a particle: write it row by row, u.square().sum(-1) in place of "
                "u.square().sum()"
            )
