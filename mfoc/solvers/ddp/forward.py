"""Roll-outs under a policy, and the line search on them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mfoc.solvers.ddp.backward import Limits, Policy
from mfoc.solvers.ddp.lanes import Lanes

_SHORTER = (0.5, 0.25, 0.125, 0.0625, 0.03125)  # after the full step; shorter ones call for more regularisation
_ENOUGH = 1e-4  # share of the expected decrease that makes a step


@dataclass(frozen=True, eq=False)
class Nominal:
    """Trajectories of some problems: states x_0..x_T, controls, and gaps d_t = f_t(x_t, u_t) - x_(t+1)."""

    states: list[Tensor]
    controls: list[Tensor]
    gaps: list[Tensor] | None
    cost: Tensor

    def of(self, some: Tensor) -> Nominal:
        """Those of some of the problems."""
        gaps = None if self.gaps is None else [gap[some] for gap in self.gaps]
        return Nominal([x[some] for x in self.states], [u[some] for u in self.controls], gaps, self.cost[some])


@dataclass(frozen=True, eq=False)
class Step:
    """What the line search found.

    Attributes:
        states: of each stage ``[B, n]``; the old ones where no length did.
        controls: likewise ``[B, m]``.
        length: the step length ``[B]``; 0 where no length did.
    """

    states: list[Tensor]
    controls: list[Tensor]
    length: Tensor


def roll(
    lanes: Lanes, at: Nominal, policy: Policy, limits: Limits | None, rows: Tensor, index: Tensor, alpha: Tensor
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Roll-outs of lanes: states, controls, and cost ``[L]``.

    Args:
        lanes: the batch.
        at: the nominal trajectories of A problems.
        policy: their policies.
        limits: bounds of the step in each control.
        rows: which of the A problems each lane is of ``[L]``.
        index: the same as numbers of the batch ``[L]``.
        alpha: the step length of each lane ``[L]``.
    """
    z, alpha = lanes.of_lanes(index), alpha[:, None]
    x = at.states[0][rows]
    xs, us = [x], []
    for t, nominal in enumerate(at.controls):
        step = alpha * policy.feedforward[t][rows]
        if t:
            step = step + (policy.gains[t][rows] @ (x - at.states[t][rows])[:, :, None])[:, :, 0]
        if limits is not None:
            step = torch.minimum(torch.maximum(step, limits[t][0][rows]), limits[t][1][rows])
        u = nominal[rows] + step
        x = lanes.dynamics(t, x, u, z)
        if at.gaps is not None:
            x = x - (1 - alpha) * at.gaps[t][rows]
        us.append(u)
        xs.append(x)
    return xs, us, costs(lanes, xs, us, index)


def costs(lanes: Lanes, xs: list[Tensor], us: list[Tensor], index: Tensor) -> Tensor:
    """sum_t L_t + Phi of lanes ``[L]``; stages of equal kind in one call."""
    total = lanes.terminal_cost(xs[-1], lanes.of_lanes(index))
    if lanes.problem.running_cost is None:
        return total
    for group in lanes.groups():
        x, u = torch.cat([xs[t] for t in group]), torch.cat([us[t] for t in group])
        found = lanes.running_cost(group[0], x, u, lanes.of_lanes(index.repeat(len(group))))
        total = total + found.reshape(len(group), -1).sum(0)
    return total


def search(
    lanes: Lanes, at: Nominal, policy: Policy, limits: Limits | None, some: Tensor, weight: Tensor | None
) -> Step:
    """The longest step of each problem that keeps enough of what the model expects.

    With gaps the merit is J + weight sum_t |d_t|_1, of which a step of length alpha leaves (1 - alpha) of the second.

    Args:
        lanes: the batch.
        at: the nominal trajectories of A problems.
        policy: their policies.
        limits: bounds of the step in each control.
        some: which problems of the batch they are ``[A]``.
        weight: of the gaps in the merit ``[A]``; None where there are none.
    """
    everyone = torch.arange(len(some), device=some.device)
    xs, us, cost = roll(lanes, at, policy, limits, everyone, some, torch.ones_like(at.cost))
    length = _lengths(at, policy, everyone, torch.ones_like(at.cost), cost, weight)
    left = (length == 0).nonzero()[:, 0]
    if len(left):
        tried = len(_SHORTER)
        alpha = at.cost.new_tensor(_SHORTER).repeat(len(left))
        rows = left.repeat_interleave(tried)
        xs2, us2, cost2 = roll(lanes, at, policy, limits, rows, some[rows], alpha)
        shorter = _lengths(at, policy, rows, alpha, cost2, weight).reshape(-1, tried)
        length[left], best = shorter.max(1)
        chosen = best + tried * torch.arange(len(left), device=best.device)
        for whole, part in ((xs, xs2), (us, us2)):
            for t, leaf in enumerate(part):
                whole[t][left] = leaf[chosen]
    moved = (length > 0)[:, None]
    states = [torch.where(moved, new, old) for new, old in zip(xs, at.states, strict=True)]
    controls = [torch.where(moved, new, old) for new, old in zip(us, at.controls, strict=True)]
    return Step(states, controls, length)


def _lengths(at: Nominal, policy: Policy, rows: Tensor, alpha: Tensor, cost: Tensor, weight: Tensor | None) -> Tensor:
    """The step lengths of lanes; 0 where the step is not good enough."""
    expected = alpha * policy.linear[rows] + alpha.square() / 2 * policy.quadratic[rows]
    change, old = cost - at.cost[rows], at.cost[rows].abs()
    if at.gaps is not None and weight is not None:
        closed = alpha * weight[rows] * gap_size(at.gaps)[rows]
        expected, change = expected - closed, change - closed
        old = old + weight[rows] * gap_size(at.gaps)[rows]
    noise = 16 * torch.finfo(cost.dtype).eps * old  # of J itself: the last steps of a solve are within it
    good = (expected <= 0) & (change <= _ENOUGH * expected + noise) & cost.isfinite()
    return torch.where(good, alpha, 0.0)


def gap_size(gaps: list[Tensor]) -> Tensor:
    """sum_t |d_t|_1 of each problem ``[B]``."""
    return torch.stack([gap.abs().sum(1) for gap in gaps]).sum(0)
