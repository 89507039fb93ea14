"""Paths of states that each have a control of their own."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mfoc.hjb.bellman import Bellman
from mfoc.problem import Problem, per_stage


def per_particle(made: Bellman, controls: list[Tensor]) -> Problem:
    """The problem without noise in which each particle has controls of its own: T tensors ``[N, m]``."""
    return replace(
        made.problem,
        dynamics=lambda t, x, u, z: made.step(t, x, u)[0],
        running_cost=lambda t, x, u, z: made.step(t, x, u)[1],
        terminal_cost=lambda x, z: made.terminal(x),
        controls=controls,
        schedule=per_stage,
        horizon=None,
        bounds=None,
        per_particle=True,
        noise=None,
        kind=None,
        affine=None,
    )


def costs_to_go(made: Bellman, states: list[Tensor], controls: list[Tensor]) -> Tensor:
    """What each particle pays from each stage on ``[T+1, N]``."""
    with torch.no_grad():
        costs = [made.step(t, x, u)[1] for t, (x, u) in enumerate(zip(states[:-1], controls, strict=True))]
        return torch.stack([*costs, made.terminal(states[-1])]).flip(0).cumsum(0).flip(0)
