"""Differential dynamic programming as in the textbook: one problem, one stage at a time, autograd's Jacobians."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import functional

import mfoc

hessian: Any = functional.hessian  # which have no types
jacobian: Any = functional.jacobian


def ddp_step(problem: mfoc.Problem, controls: Tensor, particles: mfoc.Particles) -> tuple[Tensor, float]:
    """One full DDP step for one particle, unregularised: new controls ``[T, m]`` and the expected change of J.

    Jacobson & Mayne (1970): V_x and V_xx along the nominal trajectory, then a roll-out under the feedback. The short
    forms V_x = Q_x - Q_xu Q_uu^-1 Q_u and V_xx = Q_xx - Q_xu Q_uu^-1 Q_ux hold, as nothing is regularised.
    """
    z, T = particles.data, problem.stages
    xs = [particles.state[0]]
    for t in range(T):
        xs.append(problem.dynamics(t, xs[t][None], controls[t][None], z)[0])
    n = len(xs[0])
    v, V = _slope_and_bend(lambda x: problem.terminal_cost(x[None], z)[0], xs[T])
    k: list[Any] = [None] * T
    K: list[Any] = [None] * T
    expected = 0.0
    for t in reversed(range(T)):

        def f(y: Tensor, t: int = t) -> Tensor:
            moved: Tensor = problem.dynamics(t, y[None, :n], y[None, n:], z)[0]
            return moved

        def stage(y: Tensor, t: int = t, v: Tensor = v) -> Tensor:
            assert problem.running_cost is not None
            return problem.running_cost(t, y[None, :n], y[None, n:], z)[0] + f(y, t) @ v

        y = torch.cat([xs[t], controls[t]])
        q, Q = _slope_and_bend(stage, y)
        F: Any = jacobian(f, y)
        Q = Q + F.mT @ V @ F
        k[t], K[t] = -torch.linalg.solve(Q[n:, n:], q[n:]), -torch.linalg.solve(Q[n:, n:], Q[n:, :n])
        expected += float(q[n:] @ k[t]) / 2
        v, V = q[:n] + Q[:n, n:] @ k[t], Q[:n, :n] + Q[:n, n:] @ K[t]
    x, new = xs[0], []
    for t in range(T):
        new.append(controls[t] + k[t] + K[t] @ (x - xs[t]))
        x = problem.dynamics(t, x[None], new[t][None], z)[0]
    return torch.stack(new), expected


def _slope_and_bend(function: Callable[[Tensor], Tensor], at: Tensor) -> tuple[Tensor, Tensor]:
    g: Any = jacobian(function, at)
    H: Any = hessian(function, at)
    return g, H
