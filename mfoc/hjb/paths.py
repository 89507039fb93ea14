"""Paths of states that each have a control of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mfoc import tree
from mfoc.derivatives import gradients
from mfoc.hjb.bellman import Bellman
from mfoc.hjb.newton import minimise
from mfoc.minimisers import LBFGS, Evaluate
from mfoc.pontryagin import rollout
from mfoc.printing import by_identity
from mfoc.problem import Problem, per_stage

_ITERATIONS = 500  # of L-BFGS


@by_identity
class ClosedLoop(NamedTuple):
    """Paths under a feedback.

    Attributes:
        states: T+1 tensors ``[N, n]``.
        controls: T tensors ``[N, m]``: what the feedback said, as of a problem with ``per_particle=True``.
        cost: of each path ``[N]``.
    """

    states: list[Tensor]
    controls: list[Tensor]
    cost: Tensor

    def plot(self) -> Any:
        """A figure of the law of the paths and of their controls: mean, and where most paths are.

        Raises:
            MissingExtra: matplotlib is not installed.
        """
        from mfoc.drawing.fields import laws

        title = f"closed loop, {len(self.cost)} paths, mean cost {float(self.cost.detach().mean()):.4g}"
        return laws([("x", self.states), ("u", self.controls)], title)


@torch.no_grad()
def follow(
    made: Bellman, policy: Callable[[int, Tensor], Tensor], x: Tensor, normals: Tensor | None = None
) -> ClosedLoop:
    """The paths of a feedback from states ``[N, n]``, at one value of the noise ``[N, T, k]`` each."""
    states, controls, total = [x], list[Tensor](), torch.zeros_like(x[:, 0])
    for t in range(made.problem.stages):
        controls.append(policy(t, states[-1]))
        moved, cost = made.step(t, states[-1], controls[-1], None if normals is None else normals[:, t])
        states.append(moved)
        total = total + cost
    return ClosedLoop(states, controls, total + made.terminal(states[-1]))


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


def open_loop(made: Bellman, x: Tensor) -> tuple[list[Tensor], Tensor]:
    """Optimal open-loop controls from each state ``[N, n]``, all at once, by L-BFGS (projected Newton under bounds).

    Returns:
        T controls ``[N, m]``, a local minimum near the problem's own, and which rows are stationary ``[N]``.
    """
    stages = made.problem.stages
    limits = [made.bounds(t) for t in range(stages)]
    low, high = (torch.cat([pair[k] for pair in limits]) for k in (0, 1))
    start = torch.cat([made.control(t) for t in range(stages)]).expand(len(x), -1).clamp(low, high)

    def cost(rows: Tensor, flat: Tensor) -> Tensor:
        controls = _stages(flat, stages)
        return rollout(per_particle(made, controls), controls, x[rows]).cost

    def evaluate(flat: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            free = tree.free(flat)
            value = cost(torch.arange(len(x), device=x.device), free)
            return value.detach(), gradients(value, [free])[0]

    if bool((low.isfinite() | high.isfinite()).any()):
        with torch.no_grad():
            best = minimise(cost, start, low, high)[0]
    else:
        best = LBFGS(steps=_ITERATIONS, history=20, tol=1e-10).minimise(evaluate, start).point
    return _stages(best, stages), _stationary(evaluate, start, best, low, high)


def _stages(flat: Tensor, stages: int) -> list[Tensor]:
    return list(flat.view(len(flat), stages, -1).unbind(1))


def _stationary(evaluate: Evaluate, start: Tensor, best: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Rows whose slope has fallen to rounding's root, but for what the bounds hold ``[N]``."""
    value, slope = evaluate(best)
    held = ((best <= low) & (slope > 0)) | ((best >= high) & (slope < 0))
    size = slope.masked_fill(held, 0).abs().amax(1)
    scale = torch.maximum(evaluate(start)[1].abs().amax(1).median(), slope.abs().amax(1))
    allowed = max(1e-6, torch.finfo(best.dtype).eps ** 0.5) * scale
    found: Tensor = (size <= allowed) & value.isfinite()
    return found
