"""What optimality says of the two ends of a span of time, and how spans are joined and doubled.

Reference:
    E. Chu, H.-Y. Fan, W.-W. Lin, C.-S. Wang (2004), "Structure-preserving algorithms for periodic discrete-time
    algebraic Riccati equations", International Journal of Control 77(8), for the doubling.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mfoc.lq.modes import Mode


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


def halvings_of(matrix: Tensor, step: float) -> int:
    """How often ``step`` must be halved for the exponential of ``matrix * step`` to stay near the identity."""
    norm = float(torch.linalg.matrix_norm(matrix.detach(), ord=1).amax()) * step
    return max(0, math.ceil(math.log2(2.0 * norm))) if norm > 0.0 else 0


def symmetric(x: Tensor) -> Tensor:
    """The symmetric part of a matrix."""
    return (x + x.mT) / 2


class Span(NamedTuple):
    """What optimality says of the two ends of a span of time, as state x and costate p (half the gradient of cost).

        x_end = Phi x - Gamma p_end,        p = Theta x + Phi' p_end

    All ``[b, n, n]``; Gamma and Theta are symmetric and positive semi-definite. One stage is (A, B R^-1 B', Q).
    """

    phi: Tensor
    gamma: Tensor
    theta: Tensor


def join(gamma: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """Joins a span to what follows it, of cost-to-go ``after``.

    Returns:
        The inverse of I + gamma after (no eigenvalue of which is below one), and the largest entry of that matrix over
        the batch. Its square, times eps, bounds the relative error that the joint brings to a path.
    """
    eye = torch.eye(gamma.shape[-1], dtype=gamma.dtype, device=gamma.device)
    matrix = torch.baddbmm(eye.expand_as(gamma), gamma, after)
    return torch.linalg.inv_ex(matrix).inverse, matrix.detach().abs().amax()


def close(part: Span, P: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where p_end = P x_end: the matrix that takes x to x_end, the P of the start, and the size of the joint."""
    inverse, size = join(part.gamma, P)
    move = torch.bmm(inverse, part.phi)
    return move, torch.baddbmm(part.theta, part.phi.mT, torch.bmm(P, move)), size


class Middle(NamedTuple):
    """The state in the middle of two equal spans: x_mid = from_start x - from_end p_end."""

    from_start: Tensor
    from_end: Tensor


def double(half: Span) -> tuple[Span, Middle, Tensor]:
    """Two equal spans in a row, by the structure-preserving doubling of Chu et al. (2004).

    Returns:
        The whole, its middle, and the size of the joint.
    """
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
    hamiltonian = torch.cat([torch.cat([A, -G], -1), torch.cat([-Q, -A.mT], -1)], -2)
    halvings = halvings_of(hamiltonian, step)
    flowed = torch.matrix_exp(hamiltonian * (step / 2**halvings))
    inverse = torch.linalg.inv(flowed[:, n:, n:])
    found = Span(inverse.mT, symmetric(-flowed[:, :n, n:] @ inverse), symmetric(-inverse @ flowed[:, n:, :n]))
    for _ in range(halvings):
        found = double(found)[0]
    return Span(found.phi, found.gamma / unit, found.theta * unit)
