"""Where SGD stays: the stationary law on a quadratic, of the iteration itself and of its continuous-time limits.

The gradient at the minimum has the Hessian H and a noise with covariance Sigma that does not depend on the weights, at
the batch size used. After S. Mandt, M. Hoffman & D. Blei (2017), "Stochastic gradient descent as approximate Bayesian
inference", arXiv:1704.04289, sec. 3, and K. Liu, L. Ziyin & M. Ueda (2021), "Noise and fluctuation of finite learning
rate stochastic gradient descent", arXiv:2012.03636, for the laws at a finite learning rate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mfoc.analysis.noise.theory.quantities import (
    as_broadcast,
    as_given,
    as_matrices,
    as_tensors,
    check_semidefinite,
    rounding,
)
from mfoc.checks import check_callable, check_positive
from mfoc.errors import InvalidType, InvalidValue


def sgd_stationary_covariance(hessian: float | Tensor, noise: float | Tensor, lr: float) -> Tensor | float:
    """The covariance C of the weights in the long run of SGD, x <- x - eta (H (x - x*) + xi), exactly.

    C solves C = (I - eta H) C (I - eta H) + eta^2 Sigma. In the basis of H's eigenvectors, with eigenvalues h,
    C_ij = eta Sigma_ij / (h_i + h_j - eta h_i h_j): at a finite rate more than ``ou_stationary_covariance`` says.

    Args:
        hessian: H, symmetric positive definite ``[d, d]``, or a number.
        noise: covariance Sigma of the gradient at the batch size used, symmetric positive semidefinite ``[d, d]``, or
            a number beside a number.
        lr: learning rate eta.

    Returns:
        C ``[d, d]``; a float where both are numbers, a 0-d tensor where one is.

    Raises:
        InvalidType: neither numbers nor floating-point tensors.
        InvalidValue: not finite, not symmetric, a singular Hessian, a noise that is not positive semidefinite, shapes
            or dtypes that differ, or a rate of 2 / lambda_max or more, at which nothing is stationary.
    """
    return _stationary(hessian, noise, lr, lambda h: h[:, None] + h - lr * h[:, None] * h, finite=True)


def ou_stationary_covariance(hessian: float | Tensor, noise: float | Tensor, lr: float) -> Tensor | float:
    """The same of the Ornstein-Uhlenbeck process dx = -H (x - x*) dt + sqrt(eta Sigma) dW: small learning rates.

    C solves H C + C H = eta Sigma (Mandt, Hoffman & Blei 2017, sec. 3).

    Args:
        hessian: H, symmetric positive definite ``[d, d]``, or a number.
        noise: as for ``sgd_stationary_covariance``.
        lr: learning rate eta; the process has a stationary law at any.

    Returns:
        C ``[d, d]``; a float where both are numbers, a 0-d tensor where one is.

    Raises:
        InvalidType, InvalidValue: as ``sgd_stationary_covariance``, but for large rates.
    """
    return _stationary(hessian, noise, lr, lambda h: h[:, None] + h, finite=False)


def momentum_stationary_variance(
    hessian_eigenvalue: float | Tensor, noise: float | Tensor, lr: float | Tensor, momentum: float | Tensor
) -> Tensor | float:
    """The variance in the long run of SGD with heavy-ball momentum, as ``torch.optim.SGD`` has it, exactly.

    For v <- mu v + g, x <- x - eta v with g = h x + xi it is

        eta Sigma (1 + mu) / (h (1 - mu) (2 (1 + mu) - eta h)),     stationary if 0 < eta h < 2 (1 + mu)

    (Liu, Ziyin & Ueda 2021, with momentum, in one dimension). The arguments are broadcast against one another; where H
    and Sigma commute these are the variances along their common eigenvectors.

    Args:
        hessian_eigenvalue: h > 0, curvature along one direction ``[...]``, or a number.
        noise: variance Sigma >= 0 of the gradient along it, at the batch size used.
        lr: learning rate eta > 0.
        momentum: mu in [0, 1), without dampening.

    Returns:
        The variance, a float where all arguments are numbers, else a tensor ``[...]``.

    Raises:
        InvalidType: neither a number nor a floating-point tensor.
        InvalidValue: out of these ranges, not finite, shapes that do not broadcast, or a rate at which nothing is
            stationary.
    """
    h, s, eta, mu = as_broadcast(hessian_eigenvalue=hessian_eigenvalue, noise=noise, lr=lr, momentum=momentum)
    for wrong, words in (
        (h <= 0, "hessian_eigenvalue is not positive; there is no stationary law along a flat direction"),
        (s < 0, "noise is negative; expected variances of gradients, 0 or more"),
        (eta <= 0, "lr is not positive; expected learning rates above 0"),
        ((mu < 0) | (mu >= 1), "momentum is not in [0, 1), where heavy-ball SGD is defined and can be stationary"),
    ):
        if bool(wrong.any()):
            raise InvalidValue(words)
    largest = 2 * (1 + mu) / h
    if bool((eta >= largest).any()):
        raise InvalidValue(f"lr is too large for a stationary law; expected one below {float(largest.min()):.4g}")
    variance = eta * s * (1 + mu) / (h * (1 - mu) * (2 * (1 + mu) - eta * h))
    return as_given(variance, hessian_eigenvalue, noise, lr, momentum)


def stationary_density(
    potential: Callable[[Tensor], Tensor], lr: float, noise: float | Tensor, grid: Tensor | Sequence[Tensor]
) -> Tensor:
    """The stationary (Gibbs) density of dx = -grad f dt + sqrt(eta Sigma) dW, proportional to exp(-2 f / (eta Sigma)).

    It holds where Sigma is one number times the identity and the same at all weights, and for no other noise: what
    is stationary then is no function of f alone, and its probability flows in circles. It is the law of SGD for small
    learning rates only.

    Args:
        potential: f. On one axis ``f(x) -> [n]`` for x ``[n]``, on d axes ``f(x) -> [n]`` for x ``[n, d]``.
        lr: learning rate eta.
        noise: Sigma > 0, a number, or a multiple of the identity ``[d, d]``.
        grid: an increasing axis ``[n]``, or a list of d of them, whose product is the grid.

    Returns:
        The density ``[n]``, or ``[n1, ..., nd]``, with integral 1 over the grid by the trapezoid rule: the grid should
        reach to where the density has died out. Its dtype is the grid's.

    Raises:
        InvalidType: no function, no tensors.
        InvalidValue: a noise that is not a positive multiple of the identity, an axis that does not increase, a
            potential of another shape or with NaN on the grid, or a grid too coarse for the density.
    """
    check_callable("a function f(x) -> [n]", potential=potential)
    check_positive(lr=lr)
    axes = _axes(grid)
    temperature = lr * _isotropic(noise, len(axes)) / 2
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    with torch.no_grad():
        f = potential(axes[0] if isinstance(grid, Tensor) else points.flatten(0, -2))
    count = points.shape[:-1].numel()
    if not isinstance(f, Tensor) or f.shape != (count,):
        got = tuple(f.shape) if isinstance(f, Tensor) else f
        raise InvalidValue(f"potential returned {got!r} on {count} points; expected a tensor of shape ({count},)")
    if bool(f.isnan().any()) or not bool(f.isfinite().any()) or bool((f == -torch.inf).any()):
        raise InvalidValue("potential is NaN or -inf somewhere on the grid, or finite nowhere; expected a loss")
    density = torch.exp(-(f - f.min()).to(points) / temperature).reshape(points.shape[:-1])
    masses = density
    for k, axis in enumerate(axes):
        masses = masses * _trapezoid(axis).reshape(-1, *[1] * (len(axes) - 1 - k))
    total = masses.sum()
    _check_resolved(masses / total)
    return density / total


def _stationary(
    hessian: float | Tensor, noise: float | Tensor, lr: float, damping: Callable[[Tensor], Tensor], *, finite: bool
) -> Tensor | float:
    """C = V (eta V'Sigma V / damping) V', the quotient entry by entry."""
    check_positive(lr=lr)
    H, S = as_matrices(hessian=hessian, noise=noise)
    h, V = torch.linalg.eigh(H)
    if float(h[0]) <= rounding(h):
        raise InvalidValue(
            f"hessian has the eigenvalue {float(h[0]):.3g}, not above rounding in {h.dtype}; expected a positive "
            "definite one: along the others nothing holds the weights, so that there is no stationary law. Project on "
            "the directions with curvature"
        )
    if finite and lr * float(h[-1]) >= 2:
        raise InvalidValue(
            f"lr is {lr:.4g} and SGD has no stationary law from 2 / lambda_max = {2 / float(h[-1]):.4g} on; "
            "expected a smaller one"
        )
    check_semidefinite(torch.linalg.eigvalsh(S), "noise")
    C = V @ (lr * (V.mT @ S @ V) / damping(h)) @ V.mT
    C = (C + C.mT) / 2
    scalar = not isinstance(hessian, Tensor) or hessian.dim() == 0
    return as_given(C.reshape(()) if scalar else C, hessian, noise)


def _trapezoid(axis: Tensor) -> Tensor:
    """The weights of the trapezoid rule ``[n]``."""
    gaps, none = axis.diff(), axis.new_zeros(1)
    return (torch.cat([none, gaps]) + torch.cat([gaps, none])) / 2


def _check_resolved(masses: Tensor) -> None:
    """Refuses a grid that steps over a peak: the rule is exact to six digits on Gaussians that pass."""
    for k in range(masses.dim()):
        others = [j for j in range(masses.dim()) if j != k]
        most = float((masses.sum(others) if others else masses).max())
        if most > 0.5 and masses.shape[k] > 2:
            raise InvalidValue(
                f"one point on axis {k} of the grid holds {most:.2g} of the mass; expected points closer together, "
                "some for each standard deviation sqrt(eta Sigma / (2 f'')) at the minimum"
            )


def _axes(grid: Tensor | Sequence[Tensor]) -> list[Tensor]:
    if not isinstance(grid, Tensor | list | tuple) or not len(grid):
        raise InvalidType("grid is no axis; expected an increasing tensor [n], or a list of them")
    axes = as_tensors(
        **{f"axis {k} of the grid": axis for k, axis in enumerate([grid] if isinstance(grid, Tensor) else grid)}
    )
    for k, axis in enumerate(axes):
        if axis.dim() != 1 or len(axis) < 2 or bool((axis.diff() <= 0).any()):
            raise InvalidValue(
                f"axis {k} of the grid, {tuple(axis.shape)}, does not increase; expected [n] with n >= 2"
            )
    return axes


def _isotropic(noise: float | Tensor, d: int) -> float:
    (S,) = as_matrices(noise=noise)
    level = float(S.diagonal().mean())
    isotropic = float((S - level * torch.eye(len(S), device="cpu").to(S)).abs().max()) <= rounding(S)
    if not isotropic or level <= 0 or len(S) not in (1, d):
        raise InvalidValue(
            f"noise {list(S.shape)} on {d} axes: expected a positive number, or a positive multiple of the identity "
            f"[{d}, {d}]; for other noise the stationary density is not exp(-2 f / (eta Sigma))"
        )
    return level
