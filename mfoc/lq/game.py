"""The mean-field game of an LQ problem in closed form: one Riccati equation that is not symmetric.

Every player takes the mean m for given, so that his deviation from it is controlled as in the control problem (P and K),
while the mean's half-gradient is p = G m with, in continuous time,

    -G' = A' G + G (A + Abar) - G B R^-1 B' G + Q + Qbar (I - S),    G(T) = QT + QbarT (I - ST)

(without cross terms). The control problem has A + Abar, (I - S)' Qbar (I - S) and (I - ST)' QbarT (I - ST) on both
sides, and is symmetric: A. Bensoussan, K. C. J. Sung, S. C. P. Yam, S. P. Yung (2016), "Linear-quadratic mean field
games", Journal of Optimization Theory and Applications 169, sec. 3.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mfoc.checks import check_instance
from mfoc.errors import InvalidValue
from mfoc.lq.linear_quadratic import LinearQuadratic
from mfoc.lq.modes import block_matrix, gramian, halvings_of
from mfoc.lq.terms import TIMELESS, broadcast
from mfoc.printing import by_identity


@by_identity
class Equilibrium(NamedTuple):
    """The equilibrium: u = -K (x - m) - Kbar m. T+1 nodes bound T stages.

    Attributes:
        states: the mean m ``[..., T+1, n]``.
        controls: the mean control ``[..., T, m]`` in discrete time, ``[..., T+1, m]`` (at the nodes) in continuous time.
        value: what each player pays ``[...]``.
        P: of the deviation from the mean, as in ``Riccati``.
        G: the mean's, ``[..., T+1, n, n]``, not symmetric.
        K: gains on the deviation, as in ``Riccati``.
        Kbar: gains on the mean, likewise.
    """

    states: Tensor
    controls: Tensor
    value: Tensor
    P: Tensor
    G: Tensor
    K: Tensor
    Kbar: Tensor


def equilibrium(
    problem: LinearQuadratic, mean0: Tensor, cov0: Tensor | None = None, *, shared: bool = False
) -> Equilibrium:
    """The mean-field game's equilibrium among infinitely many players, each with the costs of an LQ problem.

    The mean and its control are those of open loop and of feedback alike, with noise or without; what a player pays is
    not (``shared``). In continuous time it is exact at the nodes, whatever the step. The equilibrium of
    ``mfoc.Equilibrium(problem.problem())`` on a cloud without noise is this one, with the cloud's mean and covariance.

    In ``crossbar`` the control is the player's own: 2 m' crossbar u. ``Bbar`` and ``Rbar``, by which the mean of the
    controls acts, would make a game of controls.

    Args:
        problem: the LQ problem.
        mean0: initial mean ``[..., n]``, whose leading axes broadcast with the batch.
        cov0: initial covariance ``[..., n, n]``; None for a deterministic start.
        shared: whether all play one control, a function of time only, in place of a feedback.

    Raises:
        InvalidType: ``problem`` is no ``LinearQuadratic``.
        InvalidValue: it has ``Bbar`` or ``Rbar``; or no equilibrium that is linear in the mean: the interaction is not
            monotone, and the horizon too long.
    """
    check_instance(LinearQuadratic, "mfoc.lq.LinearQuadratic", problem=problem)
    for name in ("Bbar", "Rbar"):
        if getattr(problem, name) is not None:
            raise InvalidValue(f"{name} is given: the mean of the controls acts, a game of controls; expected None")
    zero = torch.zeros_like(mean0)
    spread = problem.value(zero, cov0, shared=shared)  # also refuses a mean0 or cov0 that does not fit
    solution = problem.riccati()
    states, controls, cost, G, Kbar = (_discrete if problem.dt is None else _continuous)(problem, mean0)
    return Equilibrium(states, controls, cost + spread, solution.P, G, solution.K, Kbar)


class _At:
    """The matrices of a stage; what is not given is zero, and S and ST the identity."""

    def __init__(self, problem: LinearQuadratic, t: int) -> None:
        self.problem, self.t = problem, t
        self.A, self.B, self.R = self.get("A"), self.get("B"), self.get("R")
        self.cross, self.crossbar = self.get("cross", self.B), self.get("crossbar", self.B)
        self.both = self.A + self.get("Abar", self.A)  # what moves the mean
        self.Q, self.pull = self._weights("Q", "Qbar", "S")

    def get(self, name: str, like: Tensor | None = None) -> Tensor:
        x: Tensor | None = getattr(self.problem, name)
        if x is None:
            return torch.zeros_like(self.A if like is None else like)
        timed = self.problem.varying and name not in TIMELESS
        return x[..., min(self.t, x.shape[-3] - 1), :, :] if timed else x

    def ends(self) -> tuple[Tensor, Tensor]:
        """The same as Q and pull, of the last state."""
        return self._weights("QT", "QbarT", "ST")

    def _weights(self, Q: str, Qbar: str, S: str) -> tuple[Tensor, Tensor]:
        """What the mean costs, and half the slope of it that a player at the mean sees."""
        rest = torch.eye(self.A.shape[-1], dtype=self.A.dtype, device=self.A.device)
        rest = rest - self.get(S) if getattr(self.problem, S) is not None else torch.zeros_like(rest)
        own, bar = self.get(Q), self.get(Qbar)
        return own + rest.mT @ bar @ rest, own + bar @ rest


def _discrete(problem: LinearQuadratic, mean0: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """States, controls, cost, G and Kbar, stage by stage."""
    stages = [_At(problem, t) for t in range(problem.steps)]
    Gs, Ks = [stages[-1].ends()[1]], []
    for at in reversed(stages):
        G = Gs[-1]
        gain = _solved(at.R + at.B.mT @ G @ at.B, at.B.mT @ G @ at.both + (at.cross + at.crossbar).mT)
        Ks.append(gain)
        Gs.append(at.pull - at.cross @ gain + at.A.mT @ G @ (at.both - at.B @ gain))
    Gs, Ks = Gs[::-1], Ks[::-1]
    x, cost = mean0.unsqueeze(-1), 0.0
    xs, us = [x], []
    for at, gain in zip(stages, Ks, strict=True):
        u = -gain @ x
        cost = cost + _quadratic(at.Q, x) + _quadratic(at.R, u) + 2 * (x.mT @ (at.cross + at.crossbar) @ u)
        x = at.both @ x + at.B @ u
        xs.append(x)
        us.append(u)
    cost = cost + _quadratic(stages[-1].ends()[0], x)
    return _stacked(xs), _stacked(us), cost[..., 0, 0], *map(_over_time, (Gs, Ks))


def _continuous(problem: LinearQuadratic, mean0: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The same: z = (m, p) moves by a constant matrix, whose exponential takes a step of the grid in parts."""
    assert problem.dt is not None
    at, n = _At(problem, 0), problem.A.shape[-1]
    on_both = (at.cross + at.crossbar).mT
    # u = -R^-1 (on_both m + B' p)
    act = -torch.linalg.solve(at.R, torch.cat(torch.broadcast_tensors(on_both, at.B.mT), -1))
    lead = broadcast(problem.batch, act.shape[:-2])
    parts = (at.both, at.B, at.pull, at.cross, at.A, at.Q, on_both.mT, at.R, act)
    both, B, pull, cross, A, Q, mixed, R, act = (x.expand(*lead, *x.shape[-2:]) for x in parts)
    none = torch.zeros_like(A)
    move = block_matrix([both, none], [-pull, -A.mT]) + block_matrix([B], [-cross]) @ act
    price = block_matrix([Q, none], [none, none]) + act.mT @ R @ act
    half = block_matrix([mixed], [torch.zeros_like(mixed)]) @ act
    price = price + half + half.mT
    halvings = halvings_of(move, problem.dt)
    each = 2**halvings
    flat = (move.reshape(-1, 2 * n, 2 * n), price.reshape(-1, 2 * n, 2 * n))
    step, V, _ = (x.reshape(*lead, 2 * n, 2 * n) for x in gramian(*flat, problem.dt / each))
    a, b, c, d = step[..., :n, :n], step[..., :n, n:], step[..., n:, :n], step[..., n:, n:]
    Gs, moves = [at.ends()[1].expand_as(A)], []
    for _ in range(problem.steps * each):
        G = _solved(d - Gs[-1] @ b, Gs[-1] @ a - c)
        moves.append(a + b @ G)
        if (torch.linalg.det(moves[-1].detach()) <= 0).any():
            _refuse()
        Gs.append(G)
    Gs, moves = Gs[::-1], moves[::-1]
    x, cost = mean0.unsqueeze(-1), 0.0
    xs = [x]
    for G, onward in zip(Gs, moves, strict=False):
        cost = cost + _quadratic(V, torch.cat([x, G @ x], -2))
        x = onward @ x
        xs.append(x)
    cost = cost + _quadratic(at.ends()[0], x)
    Gs, xs = Gs[::each], xs[::each]
    Ks = [-(act[..., :n] + act[..., n:] @ G) for G in Gs]
    us = [-gain @ x for gain, x in zip(Ks, xs, strict=True)]
    return _stacked(xs), _stacked(us), cost[..., 0, 0], *map(_over_time, (Gs, Ks))


def _solved(matrix: Tensor, right: Tensor) -> Tensor:
    found, info = torch.linalg.solve_ex(
        matrix, right.expand(broadcast(matrix.shape[:-1], right.shape[:-1]) + right.shape[-1:])
    )
    if info.any() or not bool(found.detach().isfinite().all()):
        _refuse()
    return found


def _refuse() -> None:
    raise InvalidValue(
        "the game has no equilibrium that is linear in the mean over this horizon (its Riccati equation explodes): the "
        "interaction is not monotone; expected a shorter horizon, or a weaker Abar, Qbar or QbarT"
    )


def _quadratic(weight: Tensor, x: Tensor) -> Tensor:
    return x.mT @ weight @ x


def _stacked(columns: list[Tensor]) -> Tensor:
    """Vectors ``[..., n, 1]`` over time, ``[..., T, n]``."""
    return torch.stack(torch.broadcast_tensors(*columns), -3).squeeze(-1)


def _over_time(matrices: list[Tensor]) -> Tensor:
    return torch.stack(torch.broadcast_tensors(*matrices), -3)
