"""What the matrices and vectors of an LQ problem must be, and what its answers must be within."""

from __future__ import annotations

import torch
from torch import Tensor

from mfoc.derivatives import transforming
from mfoc.errors import InvalidValue


def check_finite(name: str, x: Tensor) -> None:
    """Refuses NaN and infinity.

    Raises:
        InvalidValue: the tensor holds one.
    """
    if not transforming() and not x.sum().isfinite() and not x.isfinite().all():  # a sum is faster, and may overflow
        raise InvalidValue(f"{name} holds NaN or infinite values; expected finite ones")


def check_range(name: str, x: Tensor) -> Tensor:
    """An answer, of finite matrices and vectors, which is refused where the dtype could not hold it.

    Raises:
        InvalidValue: it is not finite.
    """
    if not transforming() and not x.detach().isfinite().all():
        raise InvalidValue(f"{name} leaves the range of {x.dtype}; {CURE}")
    return x


CURE = "measure states, controls and costs in units in which they are of order one"


def is_symmetric(x: Tensor) -> bool:
    """Whether a matrix is, up to rounding."""
    x = x.detach()
    return torch.equal(x, x.mT) or bool((x - x.mT).abs().amax() <= 100 * torch.finfo(x.dtype).eps * x.abs().amax())


def is_semidefinite(x: Tensor) -> bool:
    """Whether symmetric matrices ``[..., n, n]`` are positive semi-definite, up to rounding."""
    x = x.detach()
    size = x.diagonal(dim1=-2, dim2=-1).abs().amax(-1)[..., None, None]
    x = x / torch.where(size > 0, size, 1.0)  # so that rounding has one size
    if not torch.linalg.cholesky_ex(x).info.any():
        return True
    eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    slack = 100 * x.shape[-1] * torch.finfo(x.dtype).eps * eye
    return not torch.linalg.cholesky_ex(x + slack).info.any()


def check_covariance(name: str, x: Tensor) -> None:
    """Refuses what is no covariance matrix ``[..., n, n]``, beyond rounding.

    Raises:
        InvalidValue: it is not finite, not symmetric, or has a negative eigenvalue.
    """
    if transforming():
        return
    check_finite(name, x)
    if not is_symmetric(x):
        raise InvalidValue(f"{name} is not symmetric; expected a covariance matrix")
    if not is_semidefinite(x):
        raise InvalidValue(f"{name} is not positive semi-definite; expected a covariance matrix")
