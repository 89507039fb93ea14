"""A mean-field LQ problem as two ordinary ones: that of the deviation from the mean, and that of the mean.

The two decouple, in dynamics and in cost, so that each has a Riccati equation of its own. Either, in continuous time,
is sampled exactly by a control held constant over each step.

References:
    J. Yong (2013), "Linear-quadratic optimal control problems for mean-field stochastic differential equations",
    SIAM J. Control Optim. 51(4), for continuous time; R. Elliott, X. Li, Y.-H. Ni (2013), "Discrete time mean-field
    stochastic linear-quadratic optimal control problems", Automatica 49(11), for discrete time; C. Van Loan (1978),
    "Computing integrals involving the matrix exponential", IEEE Transactions on Automatic Control 23(3), for sampling.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mfoc.errors import InvalidValue
from mfoc.lq.conditions import check_range, is_semidefinite
from mfoc.printing import by_identity


@by_identity
class Mode(NamedTuple):
    """An ordinary LQ problem in a flat batch b; L is T when the matrices vary in time, else 1. None is zero."""

    A: Tensor  # [b, L, n, n]
    B: Tensor  # [b, L, n, m]
    Q: Tensor  # weight of the state [b, L, n, n]
    R: Tensor  # weight of the control [b, L, m, m]
    QT: Tensor  # terminal weight [b, n, n]
    cross: Tensor | None  # half the weight of the product of state and control [b, L, n, m]
    noise: Tensor | None  # covariance of the noise, per step or per unit of time [b, L, n, n]

    def uncontrolled(self) -> Mode:
        """The same problem with a control that does nothing, so that its Riccati equation is a Lyapunov equation."""
        return self._replace(B=torch.zeros_like(self.B), cross=None)


def _plus(x: Tensor, y: Tensor | None) -> Tensor:
    return x if y is None else x + y


def _on_mean(weight: Tensor | None, S: Tensor | None) -> Tensor | None:
    """(I - S)' weight (I - S): what the weight of x - Sm is to the mean. S is the identity when None."""
    if weight is None or S is None:
        return None
    rest = torch.eye(S.shape[-1], dtype=S.dtype, device=S.device) - S
    return rest.mT @ weight @ rest


def split(get: Callable[[str], Tensor | None], mean_field: bool) -> tuple[Mode, Mode]:
    """The LQ problems of the deviation from the mean and of the mean; one object where nothing makes them differ.

    ``get`` gives the matrix of a name, in the shape that ``Mode`` documents, or None for zero.
    """
    A, B, Q, R = (_given(get(name)) for name in "ABQR")
    QT, cross, sigma, noise = get("QT"), get("cross"), get("sigma"), get("noise")
    QT = torch.zeros_like(A[:, 0]) if QT is None else QT
    noise = noise if sigma is None else sigma @ sigma.mT
    if not mean_field:
        mode = Mode(A, B, Q, R, QT, cross, noise)
        return mode, mode
    crossbar, Qbar, QbarT = get("crossbar"), get("Qbar"), get("QbarT")
    cross = torch.zeros_like(B) if cross is None and crossbar is not None else cross
    return Mode(A, B, _plus(Q, Qbar), R, _plus(QT, QbarT), cross, noise), Mode(
        A=_plus(A, get("Abar")),
        B=_plus(B, get("Bbar")),
        Q=_plus(Q, _on_mean(Qbar, get("S"))),
        R=_plus(R, get("Rbar")),
        QT=_plus(QT, _on_mean(QbarT, get("ST"))),
        cross=None if cross is None else _plus(cross, crossbar),
        noise=None if noise is None else _plus(noise, get("noisebar")),
    )


def _given(x: Tensor | None) -> Tensor:
    assert x is not None
    return x


def merge(modes: tuple[Mode, Mode]) -> Mode:
    """Both modes in one, along the batch axis: they then share every tensor operation."""

    def both(parts: tuple[Tensor | None, Tensor | None]) -> Tensor | None:
        return None if parts[0] is None or parts[1] is None else torch.cat([parts[0], parts[1]])

    first, second = modes
    return Mode(*(both(parts) for parts in zip(first, second, strict=True)))  # type: ignore[arg-type]


def check_convex(mode: Mode, Q: str, R: str, QT: str) -> None:
    """Refuses a cost that, beyond rounding, is not convex in the state and strictly convex in the control.

    Q, R and QT are what its weights are called in messages.
    """
    if torch.linalg.cholesky_ex(check_range(R, mode.R.detach())).info.any():
        raise InvalidValue(f"{R} is not positive definite; expected a weight that makes every control cost")
    weight = mode.Q
    if mode.cross is not None:
        weight = block_matrix([mode.Q, mode.cross], [mode.cross.mT, mode.R])
        Q = f"the weight [[{Q}, cross], [cross', {R}]]"
    for name, x in ((Q, weight.detach()), (QT, mode.QT.detach())):
        if not is_semidefinite(check_range(name, x)):
            raise InvalidValue(f"{name} is not positive semi-definite; expected a convex cost")


def symmetric(x: Tensor) -> Tensor:
    """The symmetric part of a matrix."""
    return (x + x.mT) / 2


def trace_product(x: Tensor, y: Tensor) -> Tensor:
    """tr(x' y) over the last two axes."""
    return (x * y).sum((-2, -1))


def block_matrix(*rows: list[Tensor]) -> Tensor:
    """A matrix from its blocks, row by row."""
    return torch.cat([torch.cat(row, -1) for row in rows], -2)


def halvings_of(matrix: Tensor, step: float) -> int:
    """How often ``step`` must be halved for the exponential of ``matrix * step`` to stay near the identity.

    Raises:
        InvalidValue: the matrix is not finite.
    """
    check_range("the flow of a step", matrix)
    norm = float(torch.linalg.matrix_norm(matrix.detach(), ord=1).amax()) * step
    return max(0, math.ceil(math.log2(2.0 * norm))) if norm > 0.0 else 0


def gramian(A: Tensor, W: Tensor, step: float) -> tuple[Tensor, Tensor, Tensor]:
    """exp(A h), V(h) and int_0^h V(s) ds with V(s) = int_0^s exp(A'r) W exp(Ar) dr, all ``[b, d, d]``; W is symmetric.

    By Van Loan (1978), over a fraction of the step that is then doubled.
    """
    d = A.shape[-1]
    zero, eye = torch.zeros_like(A), torch.eye(d, dtype=A.dtype, device=A.device).expand_as(A)
    scale = W.detach().abs().amax((-2, -1), keepdim=True).clamp_min(torch.finfo(W.dtype).tiny)
    W = W / scale  # V is linear in W: keep its size out of exp
    halvings = halvings_of(A, step)
    h = math.ldexp(step, -halvings)
    blocks = torch.matrix_exp(block_matrix([-A.mT, eye, zero], [zero, -A.mT, W], [zero, zero, A]) * h)
    flowed = blocks[:, 2 * d :, 2 * d :]
    V, area = flowed.mT @ blocks[:, d : 2 * d, 2 * d :], flowed.mT @ blocks[:, :d, 2 * d :]
    for _ in range(halvings):
        area = area + h * V + flowed.mT @ area @ flowed
        V = V + flowed.mT @ V @ flowed
        flowed, h = flowed @ flowed, 2 * h
    return flowed, scale * symmetric(V), scale * symmetric(area)


def sample(mode: Mode, step: float) -> tuple[Mode, Tensor | None]:
    """The discrete problem met by a control held constant over each step: exact for dynamics, cost and noise.

    The mode is time-invariant; what is returned has no time axis. With it comes the cost ``[b]`` that noise entering
    within a step adds to that step (None: no noise).
    """
    n, m = mode.B.shape[-2:]
    A, B, Q, R = mode.A[:, 0], mode.B[:, 0], mode.Q[:, 0], mode.R[:, 0]
    cross = torch.zeros_like(B) if mode.cross is None else mode.cross[:, 0]
    joint = block_matrix([A, B], [A.new_zeros(len(A), m, n + m)])
    flowed, V, area = gramian(joint, block_matrix([Q, cross], [cross.mT, R]), step)
    noise = held = None
    if mode.noise is not None:
        noise = gramian(A.mT, mode.noise[:, 0], step)[1]
        held = trace_product(area[:, :n, :n], mode.noise[:, 0])
    Ad, Bd, Qd, Nd, Rd = flowed[:, :n, :n], flowed[:, :n, n:], V[:, :n, :n], V[:, :n, n:], V[:, n:, n:]
    return Mode(Ad, Bd, Qd, Rd, mode.QT, Nd, noise), held
