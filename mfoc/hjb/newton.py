"""Minimises many small functions of bounded controls at once: projected Newton, a row for each.

Bertsekas (1982), "Projected Newton methods for optimization problems with simple constraints", with the eigenvalues of
the Hessian made positive, so that a saddle is left downhill.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mfoc import tree
from mfoc.derivatives import gradients, refuse_once_differentiable, second_order
from mfoc.errors import InvalidValue

Objective = Callable[[Tensor, Tensor], Tensor]  # (rows [G], controls [G, m]) -> values [G], differentiable in controls

_NEEDS = "Newton's method, of the Hamiltonian in the control,", "write the costs and dynamics in others that have them"
_GRID = 5  # values of a bounded control that are tried
_MOST_STARTS = 1000
_STEPS = 30
_HALVINGS = 30
_ARMIJO = 1e-4


def lattice(centre: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Starts ``[C, m]``: five values of each bounded control, the centre and plus and minus 1 of the others.

    Raises:
        InvalidValue: the combinations are too many.
    """
    bounded = low.isfinite() & high.isfinite()
    shares, steps = (
        torch.linspace(0, 1, _GRID, device="cpu").to(centre),
        torch.tensor([0.0, -1.0, 1.0], device="cpu").to(centre),
    )
    axes = [low[k] + shares * (high[k] - low[k]) if bounded[k] else centre[k] + steps for k in range(len(centre))]
    m = len(axes)
    if (count := math.prod(len(axis) for axis in axes)) > _MOST_STARTS:
        raise InvalidValue(
            f"a control of {m} numbers gives {count:,} combinations to try; pass candidates=, a tensor [C, {m}] of "
            f"controls near which the best may lie (torch.zeros(1, {m}) is enough where the Hamiltonian is convex in u)"
        )
    return torch.cartesian_prod(*axes).reshape(-1, m).clamp(low, high)


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
    for _ in range(_STEPS):
        at = point[rows]
        slope, hessian = _derivatives(lambda u, rows=rows: objective(rows, u), at)  # type: ignore[misc]
        held = ((at <= low) & (slope > 0)) | ((at >= high) & (slope < 0))
        direction = _newton(slope.masked_fill(held, 0), hessian, held)
        moved = _descend(objective, rows, point, value, slope, direction, (low, high))
        rows = rows[moved]
        if not len(rows):
            break
    return point, value


def minimise_from(objective: Objective, starts: list[Tensor], low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """As ``minimise``, each row from the best of several starts ``[G, m]``."""
    rows = torch.arange(len(starts[0]), device=starts[0].device)
    best = starts[0]
    least = objective(rows, best)
    for u in starts[1:]:
        value = objective(rows, u)
        better = (value < least) | ~least.isfinite()
        best, least = torch.where(better[:, None], u, best), torch.where(better, value, least)
    return minimise(objective, best, low, high)


def _descend(
    objective: Objective,
    rows: Tensor,
    point: Tensor,
    value: Tensor,
    slope: Tensor,
    direction: Tensor,
    bounds: tuple[Tensor, Tensor],
) -> Tensor:
    """Halves the step along the projected arc until a row falls; writes to point and value.

    Returns:
        Which rows fell by more than rounding ``[G]``. One that hopes for less takes its last step here.
    """
    rounding = 4 * torch.finfo(point.dtype).eps * (1 + value[rows].abs())
    hope = -(slope * direction).sum(1)
    moved = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    waiting = torch.arange(len(rows), device=rows.device)
    length = 1.0
    for _ in range(_HALVINGS):
        own = rows[waiting]
        trial = (point[own] + length * direction[waiting]).clamp(*bounds)
        found = objective(own, trial)
        enough = _ARMIJO * (slope[waiting] * (trial - point[own])).sum(1)
        fell = (found - value[own] <= enough + rounding[waiting]) & found.isfinite()
        point[own[fell]], value[own[fell]] = trial[fell], torch.minimum(found, value[own])[fell]
        moved[waiting[fell]] = True
        length /= 2
        waiting = waiting[~fell & (length * hope[waiting] > rounding[waiting])]
        if not len(waiting):
            break
    return moved & (hope > rounding)


def _derivatives(function: Callable[[Tensor], Tensor], point: Tensor) -> tuple[Tensor, Tensor]:
    """Slopes ``[G, m]`` and Hessians ``[G, m, m]``: rows do not depend on one another."""
    with torch.enable_grad(), second_order(*_NEEDS):
        u = tree.free(point)
        value = function(u)
        refuse_once_differentiable(value, *_NEEDS)
        (slope,) = gradients(value, [u], create_graph=True)
        rows = [gradients(slope[:, k], [u], retain_graph=True)[0] for k in range(u.shape[1])]
    hessian = torch.stack(rows, 1)
    return slope.detach(), (hessian + hessian.mT) / 2


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
