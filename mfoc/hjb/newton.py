"""Minimises many small functions of bounded controls at once: projected Newton, a row for each.

Bertsekas (1982), "Projected Newton methods for optimization problems with simple constraints", with the eigenvalues of
the Hessian made positive, so that a saddle is left downhill.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mfoc.derivatives import gradients

Objective = Callable[[Tensor, Tensor], Tensor]  # (rows [G], controls [G, m]) -> values [G], differentiable in controls

_STEPS = 30
_HALVINGS = 30
_ARMIJO = 1e-4


def minimise(objective: Objective, start: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """A local minimiser of each row within bounds, from ``start``.

    Args:
        objective: ``objective(rows, u)``: the values of these rows at their controls.
        start: ``[G, m]``.
        low: lower bounds ``[m]``, may be infinite.
        high: upper bounds ``[m]``.

    Returns:
        The points ``[G, m]`` and their values ``[G]``, never above those of the start.
    """
    point = start.clamp(low, high)
    rows = torch.arange(len(point), device=point.device)
    value = objective(rows, point)
    eps = torch.finfo(point.dtype).eps
    for _ in range(_STEPS):
        here, slope, hessian = _derivatives(lambda u, rows=rows: objective(rows, u), point[rows])  # type: ignore[misc]
        at = point[rows]
        held = ((at <= low) & (slope > 0)) | ((at >= high) & (slope < 0))
        direction = _newton(slope.masked_fill(held, 0), hessian, held)
        hope = -(slope * direction).sum(1)
        moved = _descend(objective, rows, point, value, slope, direction, (low, high))
        rows = rows[moved & (hope > 4 * eps * (1 + here.abs()))]
        if not len(rows):
            break
    return point, value


def _descend(
    objective: Objective,
    rows: Tensor,
    point: Tensor,
    value: Tensor,
    slope: Tensor,
    direction: Tensor,
    bounds: tuple[Tensor, Tensor],
) -> Tensor:
    """Halves the step along the projected arc until a row falls; writes to point and value; which rows moved ``[G]``."""
    eps = torch.finfo(point.dtype).eps
    moved = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    waiting = torch.arange(len(rows), device=rows.device)
    length = 1.0
    for _ in range(_HALVINGS):
        own = rows[waiting]
        trial = (point[own] + length * direction[waiting]).clamp(*bounds)
        found = objective(own, trial)
        enough = _ARMIJO * (slope[waiting] * (trial - point[own])).sum(1)
        fell = (found - value[own] <= enough + eps * value[own].abs()) & found.isfinite()
        point[own[fell]], value[own[fell]] = trial[fell], torch.minimum(found, value[own])[fell]
        moved[waiting[fell]] = True
        waiting = waiting[~fell]
        if not len(waiting):
            break
        length /= 2
    return moved


def _derivatives(function: Callable[[Tensor], Tensor], point: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values ``[G]``, slopes ``[G, m]`` and Hessians ``[G, m, m]``: rows do not depend on one another."""
    with torch.enable_grad():
        u = point.detach().requires_grad_()
        value = function(u)
        (slope,) = gradients(value, [u], create_graph=True)
        rows = [gradients(slope[:, k], [u], retain_graph=True)[0] for k in range(u.shape[1])]
    hessian = torch.stack(rows, 1)
    return value.detach(), slope.detach(), (hessian + hessian.mT) / 2


def _newton(slope: Tensor, hessian: Tensor, held: Tensor) -> Tensor:
    """-|H|^-1 slope on the controls that are free ``[G, m]``; the slope itself where H says nothing."""
    free = (~held).to(slope)
    hessian = hessian.nan_to_num() * free[:, :, None] * free[:, None, :] + torch.diag_embed(1 - free)
    if slope.shape[1] == 1:
        values, vectors = hessian[:, :, 0], torch.ones_like(hessian)
    else:
        wide = torch.promote_types(slope.dtype, torch.float32)
        values, vectors = (part.to(slope) for part in torch.linalg.eigh(hessian.to(wide)))
    size = values.abs()
    flat = size <= torch.finfo(slope.dtype).eps ** 0.75 * size.amax(1, keepdim=True)
    along = (vectors.mT @ slope[:, :, None])[:, :, 0]
    return -(vectors @ (along / size.masked_fill(flat, 1))[:, :, None])[:, :, 0]
