"""Exact sampling of a continuous LQ problem: the discrete one met by a control held constant over each step.

Reference:
    C. Van Loan (1978), "Computing integrals involving the matrix exponential", IEEE Transactions on Automatic
    Control 23(3).
"""

from __future__ import annotations

import torch
from torch import Tensor

from mfoc.lq.modes import Mode
from mfoc.lq.riccati import trace_product
from mfoc.lq.spans import halvings_of, symmetric


def gramian(A: Tensor, W: Tensor, step: float) -> tuple[Tensor, Tensor, Tensor]:
    """Exponential of A and the integrals of V(s) = int_0^s exp(A'r) W exp(Ar) dr (Van Loan 1978), doubling the step.

    Args:
        A: ``[b, d, d]``.
        W: symmetric ``[b, d, d]``.
        step: length h of the step.

    Returns:
        exp(A h), V(h) and int_0^h V(s) ds, each ``[b, d, d]``.
    """
    d = A.shape[-1]
    zero, eye = torch.zeros_like(A), torch.eye(d, dtype=A.dtype, device=A.device).expand_as(A)
    scale = W.detach().abs().amax((-2, -1), keepdim=True).clamp_min(torch.finfo(W.dtype).tiny)
    rows = [[-A.mT, eye, zero], [zero, -A.mT, W / scale], [zero, zero, A]]  # V is linear in W: keep its size out of exp
    halvings = halvings_of(A, step)
    h = step / 2**halvings
    blocks = torch.matrix_exp(torch.cat([torch.cat(row, -1) for row in rows], -2) * h)
    flowed = blocks[:, 2 * d :, 2 * d :]
    V, area = flowed.mT @ blocks[:, d : 2 * d, 2 * d :], flowed.mT @ blocks[:, :d, 2 * d :]
    for _ in range(halvings):
        area = area + h * V + flowed.mT @ area @ flowed
        V = V + flowed.mT @ V @ flowed
        flowed, h = flowed @ flowed, 2 * h
    return flowed, scale * symmetric(V), scale * symmetric(area)


def sample(mode: Mode, step: float) -> tuple[Mode, Tensor | None]:
    """The discrete problem met by a control held constant over each step: exact for dynamics, cost and noise.

    Args:
        mode: a time-invariant continuous mode; ``noise`` is per unit of time.
        step: length h of a step.

    Returns:
        The discrete mode, its matrices without a time axis, and the cost ``[b]`` that the noise entering within a step
        adds to that step (None: no noise).
    """
    n, m = mode.B.shape[-2:]
    A, B, Q, R = mode.A[:, 0], mode.B[:, 0], mode.Q[:, 0], mode.R[:, 0]
    cross = torch.zeros_like(B) if mode.cross is None else mode.cross[:, 0]
    joint = torch.cat([torch.cat([A, B], -1), A.new_zeros(len(A), m, n + m)], -2)
    weight = torch.cat([torch.cat([Q, cross], -1), torch.cat([cross.mT, R], -1)], -2)
    flowed, V, area = gramian(joint, weight, step)
    noise = held = None
    if mode.noise is not None:
        noise = gramian(A.mT, mode.noise[:, 0], step)[1]
        held = trace_product(area[:, :n, :n], mode.noise[:, 0])
    Ad, Bd, Qd, Nd, Rd = flowed[:, :n, :n], flowed[:, :n, n:], V[:, :n, :n], V[:, :n, n:], V[:, n:, n:]
    return Mode(Ad, Bd, Qd, Rd, mode.QT, Nd, noise), held
