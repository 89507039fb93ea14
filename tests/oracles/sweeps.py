"""The backward sweep as the formulas say it: a stage at a time, each with an autograd call of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

import mfoc


def swept(
    problem: mfoc.Problem, controls: Any, states: Sequence[Any], particles: mfoc.Particles
) -> tuple[list[Any], Any]:
    """p_T = dPhi/dx, p_t = dH_t/dx (x_t, p_(t+1), u_t); and the sum over t of E dH_t/du, shaped as the controls.

    For any controls and states x_0..x_T, which need not be those of a roll-out.
    """
    z, n = particles.data, len(particles)
    x, free = _free(states[-1]), _free(controls)
    p = [_slopes(problem.terminal_cost(x, z).sum(), x)]
    for t in reversed(range(problem.stages)):
        x = _free(states[t])
        u = problem.schedule(free, t)
        value = _product(problem.dynamics(t, x, u, z), p[0])
        if problem.running_cost is not None:
            value = value + problem.running_cost(t, x, u, z).sum()
        if value.requires_grad:
            (value / n).backward()  # type: ignore[no-untyped-call]  # into the controls, where slopes add up, and the states
        p.insert(0, mfoc.tree.map(lambda leaf: _grad(leaf) * n, x))
    return p, mfoc.tree.map(_grad, free)


def _free(some: Any) -> Any:
    """The same values as new leaves that require grad, where they are no integers."""
    return mfoc.tree.map(lambda leaf: leaf.detach().clone().requires_grad_(leaf.is_floating_point()), some)


def _product(x: Any, p: Any) -> torch.Tensor:
    pairs = zip(mfoc.tree.leaves(x), mfoc.tree.leaves(p), strict=True)
    return torch.stack([(a * b).sum() for a, b in pairs if a.is_floating_point()]).sum()


def _slopes(value: torch.Tensor, x: Any) -> Any:
    if value.requires_grad:
        value.backward()  # type: ignore[no-untyped-call]
    return mfoc.tree.map(_grad, x)


def _grad(leaf: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
