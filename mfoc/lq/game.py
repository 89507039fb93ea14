"""The mean-field game of an LQ problem in closed form: one Riccati equation that is not symmetric.

Every player takes the mean m for given. His deviation from it is controlled as in the control problem (P and K), while
the mean's costate, half the gradient of the cost-to-go, is p = G m with, in continuous time,

    -G' = A' G + G (A + Abar) - G B R^-1 B' G + Q + Qbar (I - S),    G(T) = QT + QbarT (I - ST)

(without cross terms). The control problem has A + Abar, (I - S)' Qbar (I - S) and (I - ST)' QbarT (I - ST) on both
sides, and is symmetric: A. Bensoussan, K. C. J. Sung, S. C. P. Yam, S. P. Yung (2016), "Linear-quadratic mean field
games", Journal of Optimization Theory and Applications 169, sec. 3.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mfoc.checks import check_instance, check_plain
from mfoc.errors import InvalidValue
from mfoc.lq.conditions import CURE, check_finite, check_range
from mfoc.lq.drawing import mean_path
from mfoc.lq.linear_quadratic import LinearQuadratic
from mfoc.lq.modes import block_matrix, gramian, halvings_of
from mfoc.lq.terms import TIMELESS, broadcast
from mfoc.printing import by_identity


@by_identity
class Equilibrium(NamedTuple):
    """The equilibrium: u = -K (x - m) - Kbar m. T+1 nodes bound T stages.

    Attributes:
        states: the mean m ``[..., T+1, n]``.
        controls: the mean control, ``[..., T, m]`` in discrete time, ``[..., T+1, m]`` (nodes) in continuous time.
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

    def plot(self) -> Any:
        """A figure of the mean's states and controls over the nodes.

        Raises:
            InvalidValue: it holds several equilibria, with leading axes.
            MissingExtra: matplotlib is not installed.
        """
        return mean_path(self.states, self.controls, self.value, "equilibrium path of the mean")


def equilibrium(
    problem: LinearQuadratic, mean0: Tensor, cov0: Tensor | None = None, *, shared: bool = False
) -> Equilibrium:
    """The mean-field game's equilibrium among infinitely many players, each with the costs of an LQ problem.

    The mean and its control are those of open loop and of feedback alike, with noise or without; what a player pays is
    not (``shared``). In continuous time it is exact at the nodes, whatever the step, but for what noise adds to the
    value, a quadrature of order six. The equilibrium of
    ``mfoc.Equilibrium(problem.problem())`` on a cloud without noise is this one, with the cloud's mean and covariance.

    What acts through the mean control (``Bbar``, ``Rbar``) is taken for given, too; in ``crossbar`` the control is the
    player's own: 2 m' crossbar u.

    Args:
        problem: the LQ problem.
        mean0: initial mean ``[..., n]``, whose leading axes broadcast with the batch.
        cov0: initial covariance ``[..., n, n]``; None for a deterministic start.
        shared: whether all play one control, a function of time only, in place of a feedback.

    Raises:
        InvalidType: ``problem`` is no ``LinearQuadratic``.
        InvalidValue: it comes from ``discretise``, which keeps what the population pays and not the game; or it has no
            equilibrium that is linear in the mean: the interaction is not monotone, and the horizon too long.
    """
    check_instance(LinearQuadratic, "mfoc.lq.LinearQuadratic", problem=problem)
    if problem.sampled and problem.mean_field:
        raise InvalidValue(
            "the problem is a sampled one: discretise() keeps what the population pays, and not how a player's cost "
            "depends on the law. Expected the problem in continuous time, or LinearQuadratic.discrete(...)"
        )
    check_plain("the initial mean, a tensor [..., n]", mean0=mean0)
    zero = torch.zeros_like(mean0)
    check_finite("mean0", mean0)
    spread = problem.value(zero, cov0, shared=shared)  # also refuses a mean0 or cov0 that does not fit
    solution = problem.riccati()
    course = (_discrete if problem.dt is None else _continuous)(problem, mean0)
    for part in (course.states, course.controls, course.cost):
        check_range("the equilibrium", part)
    return Equilibrium(
        course.states, course.controls, course.cost + spread, solution.P, course.G, solution.K, course.Kbar
    )


class _Stage:
    """The matrices of a stage; what is not given is zero, and S and ST the identity."""

    def __init__(self, problem: LinearQuadratic, t: int) -> None:
        self.problem, self.t = problem, t
        self.A, self.B, self.R = self.get("A"), self.get("B"), self.get("R")
        self.cross = self.get("cross", self.B)
        # Of the mean: what moves it, and what it costs.
        self.A_all, self.B_all = self.A + self.get("Abar", self.A), self.B + self.get("Bbar", self.B)
        self.R_all, self.cross_all = self.R + self.get("Rbar", self.R), self.cross + self.get("crossbar", self.B)
        self.Q_all, self.pull = self._weights("Q", "Qbar", "S")

    def get(self, name: str, like: Tensor | None = None) -> Tensor:
        x: Tensor | None = getattr(self.problem, name)
        if x is None:
            return torch.zeros_like(self.A if like is None else like)
        timed = self.problem.varying and name not in TIMELESS
        return x[..., min(self.t, x.shape[-3] - 1), :, :] if timed else x

    def ends(self) -> tuple[Tensor, Tensor]:
        """The same as Q_all and pull, of the last state."""
        return self._weights("QT", "QbarT", "ST")

    def _weights(self, Q: str, Qbar: str, S: str) -> tuple[Tensor, Tensor]:
        """What the mean costs, and half the slope of it that a player at the mean sees."""
        eye = torch.eye(self.A.shape[-1], dtype=self.A.dtype, device=self.A.device)
        rest = torch.zeros_like(eye) if getattr(self.problem, S) is None else eye - self.get(S)
        own, bar = self.get(Q), self.get(Qbar)
        return own + rest.mT @ bar @ rest, own + bar @ rest

    def cost(self, x: Tensor, u: Tensor) -> Tensor:
        """What the mean ``[..., n, 1]`` pays in the stage."""
        return _quadratic(self.Q_all, x) + _quadratic(self.R_all, u) + 2 * (x.mT @ self.cross_all @ u)


@by_identity
class _Course(NamedTuple):
    """The mean's path, what it costs, and the feedback that makes it."""

    states: Tensor
    controls: Tensor
    cost: Tensor
    G: Tensor
    Kbar: Tensor


def _discrete(problem: LinearQuadratic, mean0: Tensor) -> _Course:
    stages = [_Stage(problem, t) for t in range(problem.steps)]
    end, pull = stages[-1].ends()
    Gs, gains = [pull], []
    for at in reversed(stages):
        ahead = at.B.mT @ Gs[-1]
        gain = _solved(at.R + ahead @ at.B_all, ahead @ at.A_all + at.cross_all.mT)
        gains.append(gain)
        Gs.append(at.pull - at.cross @ gain + at.A.mT @ Gs[-1] @ (at.A_all - at.B_all @ gain))
    gains.reverse()
    xs, us, cost = [mean0.unsqueeze(-1)], [], mean0.new_zeros(1, 1)
    for at, gain in zip(stages, gains, strict=True):
        us.append(-gain @ xs[-1])
        cost = cost + at.cost(xs[-1], us[-1])
        xs.append(at.A_all @ xs[-1] + at.B_all @ us[-1])
    cost = cost + _quadratic(end, xs[-1])
    return _Course(_vectors(xs), _vectors(us), cost[..., 0, 0], _matrices(Gs[::-1]), _matrices(gains))


def _continuous(problem: LinearQuadratic, mean0: Tensor) -> _Course:
    """The same in continuous time: each step of the grid is taken in parts over which G cannot turn round."""
    assert problem.dt is not None
    at, n = _Stage(problem, 0), problem.A.shape[-1]
    act, move, price = _flow(at, broadcast(problem.batch))
    halvings = halvings_of(move, problem.dt)
    if halvings > _HALVINGS:
        raise InvalidValue(
            f"a step of the grid is {2.0**halvings:.0e} times as long as what the game's equation can be followed for, "
            f"and leaves the range of the dtype; {CURE}"
        )
    parts = 2**halvings
    flowed, V = _over_a_step(move, price, problem.dt / parts)
    a, b, c, d = flowed[..., :n, :n], flowed[..., :n, n:], flowed[..., n:, :n], flowed[..., n:, n:]
    end, pull = at.ends()
    Gs, moves = [pull], []
    for _ in range(problem.steps * parts):
        Gs.append(_solved(d - Gs[-1] @ b, Gs[-1] @ a - c))
        moves.append(a + b @ Gs[-1])
        if bool((torch.linalg.det(moves[-1].detach()) <= 0).any()):
            raise InvalidValue(_EXPLODES)
    Gs.reverse()
    moves.reverse()
    xs, cost = [mean0.unsqueeze(-1)], mean0.new_zeros(1, 1)
    for G, onward in zip(Gs, moves, strict=False):
        cost = cost + _quadratic(V, torch.cat([xs[-1], G @ xs[-1]], -2))
        xs.append(onward @ xs[-1])
    cost = cost + _quadratic(end, xs[-1])
    Gs, xs = Gs[::parts], xs[::parts]
    gains = [-(act[..., :n] + act[..., n:] @ G) for G in Gs]
    us = [-gain @ x for gain, x in zip(gains, xs, strict=True)]
    return _Course(_vectors(xs), _vectors(us), cost[..., 0, 0], _matrices(Gs), _matrices(gains))


def _flow(at: _Stage, batch: torch.Size) -> tuple[Tensor, Tensor, Tensor]:
    """With z = (m, p): u = act z, z' = move z, and z' price z is what the mean pays by the time."""

    def full(x: Tensor) -> Tensor:
        return x.expand(*batch, *x.shape[-2:])

    none = torch.zeros_like(full(at.A))
    act = -torch.linalg.solve(full(at.R), torch.cat([full(at.cross_all.mT), full(at.B.mT)], -1))
    move = block_matrix([full(at.A_all), none], [full(-at.pull), full(-at.A.mT)])
    move = move + torch.cat([full(at.B_all), full(-at.cross)], -2) @ act
    mixed = torch.nn.functional.pad(at.cross_all @ act, (0, 0, 0, at.A.shape[-1]))
    price = block_matrix([full(at.Q_all), none], [none, none]) + act.mT @ at.R_all @ act + mixed + mixed.mT
    return act, move, price


def _over_a_step(move: Tensor, price: Tensor, h: float) -> tuple[Tensor, Tensor]:
    """What z is after h, and the matrix of what is paid by then."""
    flowed, V, _ = gramian(move.reshape(-1, *move.shape[-2:]), price.reshape(-1, *price.shape[-2:]), h)
    return flowed.reshape(move.shape), V.reshape(move.shape)


_HALVINGS = 16  # of a step, each of which doubles the work

_EXPLODES = (
    "the game has no equilibrium that is linear in the mean over this horizon (its Riccati equation explodes): the "
    "interaction is not monotone; expected a shorter horizon, or a weaker Abar, Qbar or QbarT"
)


def _solved(matrix: Tensor, right: Tensor) -> Tensor:
    lead = broadcast(matrix.shape[:-2], right.shape[:-2])
    found: Tensor
    found, info = torch.linalg.solve_ex(
        matrix.expand(*lead, *matrix.shape[-2:]), right.expand(*lead, *right.shape[-2:])
    )
    if bool(info.any()) or not bool(found.detach().isfinite().all()):
        raise InvalidValue(_EXPLODES)
    return found


def _quadratic(weight: Tensor, x: Tensor) -> Tensor:
    found: Tensor = x.mT @ weight @ x
    return found


def _vectors(columns: list[Tensor]) -> Tensor:
    """Columns ``[..., n, 1]`` over time, ``[..., T, n]``."""
    return _matrices(columns).squeeze(-1)


def _matrices(series: list[Tensor]) -> Tensor:
    lead = broadcast(*(x.shape for x in series))
    return torch.stack([x.expand(lead) for x in series], -3)
