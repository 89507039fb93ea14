"""A mean-field LQ problem as two ordinary ones: that of the deviation from the mean, and that of the mean.

The two decouple, in dynamics and in cost, so that each has a Riccati equation of its own.

References:
    J. Yong (2013), "Linear-quadratic optimal control problems for mean-field stochastic differential equations",
    SIAM J. Control Optim. 51(4), for continuous time; R. Elliott, X. Li, Y.-H. Ni (2013), "Discrete time mean-field
    stochastic linear-quadratic optimal control problems", Automatica 49(11), for discrete time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mfoc.errors import InvalidValue


class Mode(NamedTuple):
    """An ordinary LQ problem in a flat batch b; L is T when the matrices vary in time, else 1.

    Attributes:
        A: ``[b, L, n, n]``.
        B: ``[b, L, n, m]``.
        Q: weight of the state ``[b, L, n, n]``.
        R: weight of the control ``[b, L, m, m]``.
        QT: terminal weight ``[b, n, n]``.
        cross: half the weight of the product of state and control ``[b, L, n, m]``, or None for zero.
        noise: covariance of the noise, per step or per unit of time ``[b, L, n, n]``, or None for zero.
    """

    A: Tensor
    B: Tensor
    Q: Tensor
    R: Tensor
    QT: Tensor
    cross: Tensor | None
    noise: Tensor | None

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
    """The LQ problems of the deviation from the mean and of the mean.

    Args:
        get: the matrix of a name, in the shape that ``Mode`` documents, or None for zero.
        mean_field: whether the two differ; when not, they are one and the same object.
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
    """Refuses a mode whose cost is not convex in the state and strictly convex in the control.

    Args:
        mode: the problem.
        Q: how its weights are called in messages.
        R: likewise.
        QT: likewise.

    Raises:
        InvalidValue: R is not positive definite, or a weight is not positive semi-definite (beyond rounding).
    """
    if torch.linalg.cholesky_ex(mode.R.detach()).info.any():
        raise InvalidValue(f"{R} is not positive definite; expected a weight that makes every control cost")
    weight = mode.Q
    if mode.cross is not None:
        weight = torch.cat([torch.cat([mode.Q, mode.cross], -1), torch.cat([mode.cross.mT, mode.R], -1)], -2)
        Q = f"the weight [[{Q}, cross], [cross', {R}]]"
    for name, x in ((Q, weight.detach()), (QT, mode.QT.detach())):
        if not torch.linalg.cholesky_ex(x).info.any():
            continue
        size = x.diagonal(dim1=-2, dim2=-1).abs().amax(-1)[..., None, None]
        eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        slack = 100 * x.shape[-1] * torch.finfo(x.dtype).eps * size + torch.finfo(x.dtype).tiny
        if torch.linalg.cholesky_ex(x + slack * eye).info.any():
            raise InvalidValue(f"{name} is not positive semi-definite; expected a convex cost")
