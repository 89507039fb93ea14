"""Steps in the span of a new direction and of the last steps, where J is known to second order without a product."""

from __future__ import annotations

import torch
from torch import Tensor

_FLAT = 1e-3  # curvature below this share of the largest is taken for that much
_FAR = 10.0  # most lengths of the new direction that a step may have


def combined(
    direction: Tensor, rise: float, gradient: Tensor, steps: list[Tensor], changes: list[Tensor]
) -> Tensor | None:
    """The step ``[n]`` that a quadratic model of J finds best in the span of a direction and of earlier steps.

    With y_i the change of dJ/du over the step s_i, J'' s_i is about y_i; J'' along the direction d is seen by the rise
    J(u + d) - J(u) = <g, d> + <d, J'' d> / 2; so the model needs no evaluation but that of J at u + d. On a quadratic J
    it is exact, and steps with exact d are those of conjugate gradients, preconditioned by what makes d.

    Args:
        direction: d ``[n]``.
        rise: J(u + d) - J(u).
        gradient: g = dJ/du at u ``[n]``.
        steps: s_i ``[n]``; zero where there is none.
        changes: y_i ``[n]``.

    Returns:
        The step; None where the model has none.
    """
    basis = torch.stack([direction, *steps])
    bends = torch.stack([torch.zeros_like(direction), *changes])
    # One product, so that the host waits once.
    products = (basis @ torch.cat([basis, bends, gradient[None]]).mT).to("cpu", torch.float64)
    k = len(basis)
    gram, hessian, slope = products[:, :k], products[:, k : 2 * k].clone(), products[:, 2 * k]
    hessian[0] = hessian[:, 0]
    hessian[0, 0] = 2 * (rise - slope[0])
    if not bool((products.isfinite().all() & hessian.isfinite().all())):
        return None
    used = gram.diagonal() > 0
    if not bool(used[0]):
        return None
    size = torch.where(used, gram.diagonal(), 1).rsqrt() * used
    gram, hessian, slope = (size[:, None] * part * size for part in (gram, (hessian + hessian.mT) / 2, torch.diag(slope)))
    slope = slope.diagonal() / torch.where(used, size, 1)
    spread, axes = torch.linalg.eigh(gram)
    kept = spread > 10 * len(basis) * torch.finfo(direction.dtype).eps ** 0.75
    axes = axes * torch.where(kept, spread, 1).rsqrt() * kept
    bend, turn = torch.linalg.eigh(axes.mT @ hessian @ axes)
    axes = axes @ turn
    sizes = bend.abs().clamp_min(_FLAT * float(bend.abs().max()))
    if float(sizes.max()) == 0:
        return None
    along = -(axes.mT @ slope) / sizes
    length, most = float(along.norm()), _FAR / float(size[0])
    along = along * min(1.0, most / length) if length > 0 else along
    weights = size * (axes @ along)
    return weights.to(basis) @ basis
