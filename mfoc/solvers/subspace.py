"""Steps in the span of a new direction and of the last steps, where J is known to second order without a product."""

from __future__ import annotations

import torch
from torch import Tensor

from mfoc import tree

_FLAT = 1e-3  # curvature below this share of the largest counts as that much
_FAR = 10.0  # most lengths of the new direction that a step may have


def combined(
    direction: Tensor,
    rise: float,
    gradient: Tensor,
    steps: list[Tensor],
    changes: list[Tensor],
    rounding: float = 0.0,
    coupled: bool = True,
) -> Tensor | None:
    """The step ``[n]`` that a quadratic model of J finds best in the span of a direction and of earlier steps.

    With y_i the change of dJ/du over the step s_i, J'' s_i is about y_i; J'' along the direction d is seen by the rise
    J(u + d) - J(u) = <g, d> + <d, J'' d> / 2: the model needs no evaluation but that of J at u + d. On a quadratic J it
    is exact. Then d and one earlier step suffice for the steps of the conjugate gradient method, preconditioned by what
    makes d; more of them serve where J is no quadratic. (As the subspace method of Narkiss & Zibulevsky, 2005,
    "Sequential subspace optimization method for large-scale unconstrained problems", with a model in place of the
    inner minimisation.) Negative curvature counts by its size.

    Args:
        direction: d ``[n]``.
        rise: J(u + d) - J(u).
        gradient: g = dJ/du at u ``[n]``.
        steps: s_i ``[n]``; zero where there is none.
        changes: y_i ``[n]``.
        rounding: by how much the rise may be wrong.
        coupled: whether <d, J'' s_i> is taken from the y_i; else it is 0, which is better where they are out of date.

    Returns:
        The step; None where the model has none, as when rounding hides the curvature along d.
    """
    known, slope, gram, hessian = _model(direction, gradient, steps, changes)
    if not coupled:
        hessian[0, 1:] = hessian[1:, 0] = 0
    hessian[0, 0] = 2 * (rise - slope[0])
    if not known or abs(float(hessian[0, 0])) <= rounding or not bool(hessian.isfinite().all()):
        return None
    used = gram.diagonal() > 0
    unit = torch.where(used, gram.diagonal(), 1).rsqrt() * used
    # Coefficients of vectors that are orthonormal: what is nearly dependent is left out.
    spread, axes = torch.linalg.eigh(unit[:, None] * gram * unit)
    kept = spread > len(spread) * torch.finfo(direction.dtype).eps ** 0.75
    axes = unit[:, None] * axes[:, kept] / spread[kept].sqrt()
    bend, turn = torch.linalg.eigh(axes.mT @ hessian @ axes)
    axes, sizes = axes @ turn, bend.abs()
    if float(sizes.max()) == 0:
        return None
    along = -(axes.mT @ slope) / sizes.clamp_min(_FLAT * float(sizes.max()))
    most = _FAR * float(gram[0, 0].sqrt())
    along = along * min(1.0, most / max(float(tree.length(along)), torch.finfo(along.dtype).tiny))
    step: Tensor = torch.stack([direction, *steps]).mT @ (axes @ along).to(direction)
    return step


def _model(
    direction: Tensor, gradient: Tensor, steps: list[Tensor], changes: list[Tensor]
) -> tuple[bool, Tensor, Tensor, Tensor]:
    """Whether it can be used, the slopes ``[k]``, inner products and curvatures ``[k, k]`` of d, s_1..s_(k-1)."""
    basis = torch.stack([direction, *steps])
    # One product, so that the host waits once.
    products = (basis @ torch.stack([*basis, gradient, torch.zeros_like(direction), *changes]).mT).cpu().double()
    k = len(basis)
    gram, slope, hessian = products[:, :k], products[:, k], products[:, k + 1 :].clone()
    hessian[1:, 0] = hessian[0, 1:]
    known = bool(products.isfinite().all()) and float(gram[0, 0]) > 0
    return known, slope, gram, (hessian + hessian.mT) / 2
