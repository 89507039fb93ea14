"""The Riccati equation of one ``Mode``: the backward pass, in discrete or continuous time, and what the noise costs.

It rests on spans: what optimality says of the two ends of a span of time, and how spans are joined and doubled.

Reference:
    E. Chu, H.-Y. Fan, W.-W. Lin, C.-S. Wang (2004), "Structure-preserving algorithms for periodic discrete-time
    algebraic Riccati equations", International Journal of Control 77(8), for the doubling.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mfoc.derivatives import transforming
from mfoc.errors import InvalidValue
from mfoc.lq.conditions import CURE, check_range
from mfoc.lq.modes import Mode, block_matrix, halvings_of, symmetric, trace_product
from mfoc.printing import by_identity

_LOST = 0.1  # share of a number that rounding may be, beyond which nothing is left of it


@by_identity
class Flow(NamedTuple):
    """A time-invariant mode with its cross term removed: A and B drive x, Q and R weigh x and v, u = v - shift x.

    All ``[b, ., .]``; G is B R^-1 B'.
    """

    A: Tensor
    G: Tensor
    Q: Tensor
    R_inv_Bt: Tensor
    shift: Tensor


def flow(mode: Mode) -> Flow:
    """Completes the square in the control of a time-invariant mode."""
    A, B, Q, R = mode.A[:, 0], mode.B[:, 0], mode.Q[:, 0], mode.R[:, 0]
    factor = torch.linalg.cholesky(R)
    R_inv_Bt = torch.cholesky_solve(B.mT, factor)
    if mode.cross is None:
        return Flow(A, B @ R_inv_Bt, Q, R_inv_Bt, torch.zeros_like(R_inv_Bt))
    shift = torch.cholesky_solve(mode.cross[:, 0].mT, factor)
    return Flow(A - B @ shift, B @ R_inv_Bt, Q - mode.cross[:, 0] @ shift, R_inv_Bt, shift)


@by_identity
class Span(NamedTuple):
    """What optimality says of the two ends of a span of time, as state x and costate p (half the gradient of cost).

        x_end = Phi x - Gamma p_end,        p = Theta x + Phi' p_end

    All ``[b, n, n]``; Gamma and Theta are symmetric and positive semi-definite. One stage is (A, B R^-1 B', Q).
    """

    phi: Tensor
    gamma: Tensor
    theta: Tensor


def join(gamma: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """Joins a span to what follows it: the inverse of I + gamma after, and that matrix's largest entry over the batch.

    No eigenvalue is below one. The square of the entry, times eps, bounds the relative error of a path at the joint.
    """
    eye = torch.eye(gamma.shape[-1], dtype=gamma.dtype, device=gamma.device)
    matrix = torch.baddbmm(eye.expand_as(gamma), gamma, after)
    return torch.linalg.inv_ex(matrix).inverse, matrix.detach().abs().amax()


def close(part: Span, P: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where p_end = P x_end: the matrix that takes x to x_end, the P of the start, and the size of the joint."""
    inverse, size = join(part.gamma, P)
    move = torch.bmm(inverse, part.phi)
    return move, torch.baddbmm(part.theta, part.phi.mT, torch.bmm(P, move)), size


@by_identity
class Middle(NamedTuple):
    """The state in the middle of two equal spans: x_mid = from_start x - from_end p_end."""

    from_start: Tensor
    from_end: Tensor


def double(half: Span) -> tuple[Span, Middle, Tensor]:
    """Two equal spans in a row (Chu et al. 2004): the whole, its middle, and the size of the joint."""
    phi, gamma, theta = half
    inverse, size = join(gamma, theta)
    middle = Middle(torch.bmm(inverse, phi), torch.bmm(torch.bmm(inverse, gamma), phi.mT))
    whole = Span(
        torch.bmm(phi, middle.from_start),
        torch.baddbmm(gamma, phi, middle.from_end),
        torch.baddbmm(theta, torch.bmm(phi.mT, theta), middle.from_start),
    )
    return whole, middle, size


def span(parts: Flow, step: float | None) -> Span:
    """The span of one stage, or of one step of dx = (Ax - Gp) dt, dp = -(Qx + A'p) dt.

    In continuous time the exponential of the Hamiltonian matrix is taken over a fraction of the step where it is near
    the identity, and that span is doubled: long steps cost no digits.
    """
    A, G, Q = parts.A, parts.G, parts.Q
    if step is None:
        return Span(A, G, Q)
    n = A.shape[-1]
    # In units of the costate where G and Q are of one size, neither drowns in the rounding of the exponential.
    sizes = [x.detach().abs().amax((-2, -1), keepdim=True).clamp_min(torch.finfo(x.dtype).eps) for x in (G, Q)]
    unit = (sizes[1] / sizes[0]).sqrt()
    G, Q = G * unit, Q / unit
    hamiltonian = block_matrix([A, -G], [-Q, -A.mT])
    halvings = halvings_of(hamiltonian, step)
    flowed = torch.matrix_exp(hamiltonian * math.ldexp(step, -halvings))
    inverse = torch.linalg.inv(flowed[:, n:, n:])
    found = Span(inverse.mT, symmetric(-flowed[:, :n, n:] @ inverse), symmetric(-inverse @ flowed[:, n:, :n]))
    for _ in range(halvings):
        found = double(found)[0]
    return Span(found.phi, found.gamma / unit, found.theta * unit)


@by_identity
class BackwardPass(NamedTuple):
    """What it leaves, in the order of time."""

    P: list[Tensor]  # T+1 matrices [b, n, n]: the cost-to-go is x' P x
    K: list[Tensor]  # gains [b, m, n] of the optimal u = -K x: T of them, or T+1 in continuous time
    # T matrices: x_(t+1) = move_t x_t under the optimal control, [b, n, n], in continuous time,
    moves: list[Tensor]  # and x_(t+1) = move_t (x_t, u_t), [b, n, n+m], in discrete time


def backward_pass(mode: Mode, steps: int, step: float | None) -> BackwardPass:
    """Solves the Riccati equation backwards over T = ``steps`` stages, or steps of length ``step``.

    The differential equation is solved exactly (to rounding) at the nodes of the grid, whatever their distance h:
    P(t) = Theta + Phi' P(t+h) (I + Gamma P(t+h))^-1 Phi with the span of one step.
    """
    if step is None:
        return _discrete(mode, steps)
    parts = flow(mode)
    one = span(parts, step)
    Ps, moves = [mode.QT], []
    for _ in range(steps):
        move, P, _ = close(one, Ps[-1])
        Ps.append(P)
        moves.append(move)
    Ps.reverse()
    _check_nodes(Ps, parts)
    return BackwardPass(Ps, [parts.R_inv_Bt @ P + parts.shift for P in Ps], moves[::-1])


def _check_nodes(Ps: list[Tensor], parts: Flow) -> None:
    """Refuses a pass in continuous time that left the range of the dtype.

    Raises:
        InvalidValue: names the node.
    """
    check_range("B R^-1 B'", parts.G)
    if not transforming() and not Ps[0].detach().isfinite().all():
        for t in reversed(range(len(Ps))):
            check_range(f"the Riccati equation at node {t}", Ps[t])


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
    Ps.reverse()
    _check_stages(Ps, moves)
    return BackwardPass(Ps, Ks[::-1], moves)


def _check_stages(Ps: list[Tensor], moves: list[Tensor]) -> None:
    """Refuses a pass in which a product left the range of the dtype, or rounding is as large as what it is added to.

    The gain is then zero where it should be small, and P is wrong without being infinite. What P_t is made of,
    A' P_(t+1) A and what control takes off it, is rounded to eps times its size.

    Raises:
        InvalidValue: names the stage.
    """
    if transforming():
        return
    n, dtype = Ps[0].shape[-1], Ps[0].dtype
    P, F = (
        torch.stack([x.detach() for x in part])
        for part in (Ps, moves[:1] if all(move is moves[0] for move in moves) else moves)
    )
    ahead = F.mT @ P[1:] @ F
    reached = ahead[..., :n, :n].abs().amax((-2, -1))
    sound = ahead.isfinite().all((-2, -1)) & (
        torch.finfo(dtype).eps * reached <= _LOST * P[:-1].abs().amax((-2, -1)).clamp_min(torch.finfo(dtype).tiny)
    )
    if not sound.all():
        t = int((~sound).any(1).nonzero().max())
        raise InvalidValue(f"the Riccati equation at stage {t} leaves the range of {dtype}; {CURE}")


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
