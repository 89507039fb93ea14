"""The backward pass: the Riccati equation of one ``Mode``, in discrete or continuous time, and what its noise costs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mfoc.lq.modes import Mode
from mfoc.lq.spans import close, flow, span, symmetric


class BackwardPass(NamedTuple):
    """What it leaves, in the order of time.

    Attributes:
        P: T+1 matrices ``[b, n, n]``: the cost-to-go is x' P x.
        K: gains ``[b, m, n]`` of the optimal u = -K x: T of them, or T+1 in continuous time.
        moves: T matrices: ``[b, n, n]`` of x_(t+1) = move_t x_t under the optimal control in continuous time, and
            ``[b, n, n+m]`` of x_(t+1) = move_t (x_t, u_t) in discrete time.
    """

    P: list[Tensor]
    K: list[Tensor]
    moves: list[Tensor]


def backward_pass(mode: Mode, steps: int, step: float | None) -> BackwardPass:
    """Solves the Riccati equation backwards.

    Args:
        mode: the problem.
        steps: number of stages T, or of steps of the time grid.
        step: length of a step; None in discrete time.
    """
    return _discrete(mode, steps) if step is None else _continuous(mode, steps, step)


def _per_stage(x: Tensor, steps: int) -> list[Tensor]:
    parts = list(x.unbind(1))
    return parts if len(parts) == steps else parts * steps


def _discrete(mode: Mode, steps: int) -> BackwardPass:
    """The discrete equation.

    With S = R + B'PB:  K = S^-1 (B'PA + N'),  P <- Q + A'P (A - BK) - NK.  This form needs no symmetrisation: an
    antisymmetric rounding error W of P is carried on as C'WC by the stable closed loop C = A - BK.

    The explicit inverse of the small, positive definite S takes half the time of a batched Cholesky solve on a CPU
    and serves as well here: P is stationary in K.
    """
    n, m = mode.B.shape[-2:]
    corner = mode.B.new_zeros(*mode.R.shape[:2], m, n) if mode.cross is None else mode.cross.mT
    moves = _per_stage(torch.cat([mode.A, mode.B], -1), steps)
    weights = _per_stage(torch.cat([corner, mode.R], -1), steps)
    Q = _per_stage(mode.Q, steps)
    P = mode.QT
    Ps, Ks = [P], []
    for t in reversed(range(steps)):
        F = moves[t]
        G = torch.bmm(F.mT, P)  # A'P above B'P
        M = torch.baddbmm(weights[t], G[:, n:], F)  # B'PA + N' beside S
        K = torch.bmm(torch.linalg.inv_ex(M[:, :, n:]).inverse, M[:, :, :n])
        P = torch.baddbmm(Q[t], G[:, :n], torch.baddbmm(F[:, :, :n], F[:, :, n:], K, alpha=-1))
        if mode.cross is not None:
            P = torch.baddbmm(P, weights[t][:, :, :n].mT, K, alpha=-1)
        Ks.append(K)
        Ps.append(P)
    return BackwardPass(Ps[::-1], Ks[::-1], moves)


def _continuous(mode: Mode, steps: int, step: float) -> BackwardPass:
    """The differential equation, exactly (to rounding) at the nodes of the grid.

    P(t) = Theta + Phi' P(t+h) (I + Gamma P(t+h))^-1 Phi with the span of one step, whatever its length h.
    """
    parts = flow(mode)
    one = span(parts, step)
    P = mode.QT
    Ps, moves = [P], []
    for _ in range(steps):
        move, P, _ = close(one, P)
        Ps.append(P)
        moves.append(move)
    Ps.reverse()
    return BackwardPass(Ps, [parts.R_inv_Bt @ P + parts.shift for P in Ps], moves[::-1])


def trace_product(x: Tensor, y: Tensor) -> Tensor:
    """tr(x' y) over the last two axes."""
    return (x * y).sum((-2, -1))


def noise_cost(mode: Mode, solved: BackwardPass, step: float | None) -> Tensor:
    """What the noise adds to the cost: sum_t tr(P_(t+1) Sigma_t), or the integral of tr(P(t) Sigma) dt, ``[b]``.

    The integral is taken by two-point Hermite quadrature on each step, the first two derivatives of P coming from its
    equation. The error is T h^6 / 100800 times the sixth derivative of the integrand.
    """
    if mode.noise is None:
        return mode.QT.new_zeros(len(mode.QT))
    if step is None:
        return trace_product(torch.stack(solved.P[1:], 1), mode.noise).sum(1)
    parts = flow(mode)
    A, G, Q, P = parts.A[:, None], parts.G[:, None], parts.Q[:, None], torch.stack(solved.P, 1)
    drift = A - G @ P
    first = -2 * symmetric(P @ A) + P @ G @ P - Q
    second = -2 * symmetric(first @ drift)
    f, df, ddf = (trace_product(x, mode.noise) for x in (P, first, second))
    return (
        step / 2 * (f[:, :-1] + f[:, 1:])
        + step**2 / 10 * (df[:, :-1] - df[:, 1:])
        + step**3 / 120 * (ddf[:, :-1] + ddf[:, 1:])
    ).sum(1)
