"""Small quadratic programs in a box, many at once."""

from __future__ import annotations

import torch
from torch import Tensor

_ROUNDS = 40


def box_qp(H: Tensor, g: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The minimiser of 1/2 k'Hk + g'k over low <= k <= high, by projected Newton steps.

    Tassa, Mansard, Todorov (2014), "Control-limited differential dynamic programming", sec. III.B; each step is exact
    on the coordinates that are free and is halved until it lowers the objective.

    Args:
        H: positive definite ``[B, m, m]``.
        g: ``[B, m]``.
        low: lower bounds ``[B, m]``; may be infinite.
        high: upper bounds ``[B, m]``.

    Returns:
        The minimisers ``[B, m]``, and which coordinates are free: not held at a bound by the slope ``[B, m]``.
    """
    k = _clamped(torch.zeros_like(g), low, high)
    if g.shape[1] == 1:  # one coordinate: the clamped minimiser
        k = _clamped(-g / H[:, 0], low, high)
        return k, _free(H, g, k, low, high)
    k = _clamped(-torch.linalg.solve(H, g), low, high)
    value = _objective(H, g, k)
    free, slack = _free(H, g, k, low, high), 64 * torch.finfo(g.dtype).eps * (1 + value.abs())
    for _ in range(_ROUNDS):
        slope = g + _apply(H, k)
        newton = -torch.linalg.solve(masked(H, free), torch.where(free, slope, 0.0))
        size = torch.ones_like(value)
        for _ in range(_ROUNDS):
            moved = _clamped(k + size[:, None] * newton, low, high)
            after = _objective(H, g, moved)
            worse = after > value + slack
            if not worse.any():
                break
            size = torch.where(worse, size / 2, size)
        moved = torch.where(worse[:, None], k, moved)
        whole = (moved - k - newton).abs() <= slack[:, None] * (1 + k.abs())  # nothing was cut off the Newton step
        still = _free(H, g, moved, low, high)
        settled = bool((still == free).all() and whole.all())
        k, free, value = moved, still, torch.minimum(after, value)
        if settled:
            break
    return k, free


def masked(H: Tensor, free: Tensor) -> Tensor:
    """The matrix with the identity on the coordinates that are not free ``[B, m, m]``."""
    keep = free[:, :, None] & free[:, None, :]
    return torch.where(keep, H, torch.eye(H.shape[-1], dtype=H.dtype, device=H.device))


def _free(H: Tensor, g: Tensor, k: Tensor, low: Tensor, high: Tensor) -> Tensor:
    slope = g + _apply(H, k)
    return ~(((k <= low) & (slope > 0)) | ((k >= high) & (slope < 0)))


def _clamped(k: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(k, low), high)


def _apply(H: Tensor, k: Tensor) -> Tensor:
    return (H @ k[:, :, None])[:, :, 0]


def _objective(H: Tensor, g: Tensor, k: Tensor) -> Tensor:
    return ((g + _apply(H, k) / 2) * k).sum(1)
