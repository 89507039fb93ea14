"""Square roots of covariances, which may depend on the weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mfoc.analysis.noise.theory.quantities import (
    as_matrices,
    as_tensors,
    check_eigenvalues_known,
    check_semidefinite,
    rounding,
)
from mfoc.checks import kind_of
from mfoc.errors import InvalidType, InvalidValue

Field = Callable[[Tensor], Tensor]  # of the weights of N runs [N, d]


def root_of(covariance: float | Tensor | Field) -> Field:
    """A symmetric square root of a covariance, as a function of the weights x ``[N, d]``.

    Args:
        covariance: a number (for each weight), variances ``[d]``, a matrix ``[d, d]``, or a function of x that returns
            variances ``[N, d]`` or matrices ``[N, d, d]``.

    Returns:
        ``root(x)``, ``[N, d]`` for numbers and variances, ``[N, d, d]`` for matrices.

    Raises:
        InvalidType: none of these.
        InvalidValue: not symmetric positive semidefinite, not finite, or of another shape; of a function when it is
            called.
    """
    if callable(covariance) and not isinstance(covariance, Tensor):
        field = covariance
        return lambda x: _of_field(field, x)
    (constant,) = as_tensors(covariance=covariance)
    if constant.dim() > 2:
        raise InvalidValue(
            f"covariance has shape {tuple(constant.shape)}; expected a number, [d], [d, d] or a function"
        )
    if constant.dim() == 2:
        as_matrices(covariance=constant)
    root = _of_matrices(constant) if constant.dim() == 2 else _of_variances(constant)

    def held(x: Tensor) -> Tensor:
        d = x.shape[1]
        if root.dim() and len(root) != d:
            raise InvalidValue(f"covariance is {list(root.shape)} and there are {d} weights; expected one size")
        if isinstance(covariance, Tensor) and (root.dtype, root.device) != (x.dtype, x.device):
            raise InvalidValue(
                f"covariance is {root.dtype} on {root.device} and the weights are {x.dtype} on {x.device}; expected "
                "one kind, such as covariance.to(x)"
            )
        return root.to(x).expand(len(x), *(root.shape if root.dim() == 2 else (d,)))

    return held


def _of_field(covariance: Field, x: Tensor) -> Tensor:
    found = covariance(x)
    n, d = x.shape
    if not isinstance(found, Tensor):
        raise InvalidType(f"covariance returned {kind_of(found)}; expected a tensor {(n, d)} or {(n, d, d)}")
    if tuple(found.shape) not in ((n, d), (n, d, d)):
        raise InvalidValue(
            f"covariance returned {tuple(found.shape)} for weights {(n, d)}; expected {(n, d)} or {(n, d, d)}"
        )
    if not bool(found.isfinite().all()):
        raise InvalidValue("covariance returned NaN or infinity; expected finite numbers: have the weights diverged?")
    if found.dim() == 2:
        return _of_variances(found)
    check_eigenvalues_known("covariance", found)
    if float((found - found.mT).abs().max()) > rounding(found):
        raise InvalidValue("covariance returned matrices that are not symmetric; expected (Sigma + Sigma.mT) / 2")
    return _of_matrices(found)


def _of_variances(variances: Tensor) -> Tensor:
    check_semidefinite(variances, "covariance")
    return variances.clamp(min=0).sqrt()


def _of_matrices(matrices: Tensor) -> Tensor:
    """By eigenvectors, which a rank below d does not trouble, as it would Cholesky's factor."""
    values, vectors = torch.linalg.eigh(matrices)
    check_semidefinite(values, "covariance")
    root: Tensor = (vectors * values.clamp(min=0).sqrt()[..., None, :]) @ vectors.mT
    return root
