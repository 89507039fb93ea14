"""Explicit Runge-Kutta methods, one step a stage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mfoc import tree
from mfoc.errors import InvalidValue
from mfoc.tree import Tree

Drift = Callable[[float, Tree, Tree, Tree], Tree]
Scheme = Callable[[Drift, float, Tree, Tree, Tree, float], Tree]


def advanced(x: Tree, h: float, *terms: tuple[float, Tree]) -> Tree:
    """The state x + h sum_i c_i k_i of the pairs (c_i, k_i), on the floating-point leaves.

    Raises:
        InvalidValue: a slope k_i has another shape, or other keys, than the state.
    """
    if isinstance(x, Tensor) and all(isinstance(k, Tensor) for _, k in terms):
        return _moved(x, h, *terms)  # most states are one tensor: spares the walk through trees
    scales = [c for c, _ in terms]
    return tree.map(lambda a, *ks: _moved(a, h, *zip(scales, ks, strict=True)), x, *(k for _, k in terms))


def _moved(x: Any, h: float, *terms: tuple[float, Tensor]) -> Any:
    if not tree.differentiable(x):
        return x
    moved: Tensor = x
    for c, k in terms:
        moved = torch.add(moved, k, alpha=h * c)  # one operation, forward and backward, where a + s * k is two
        if moved.shape != x.shape:
            raise InvalidValue(f"the drift has shape {tuple(k.shape)}; expected the state's, {tuple(x.shape)}")
    return moved


def euler(drift: Drift, s: float, x: Tree, u: Tree, z: Tree, h: float) -> Tree:
    """Explicit Euler, order 1: ``x + h b(s, x, u, z)``."""
    return advanced(x, h, (1.0, drift(s, x, u, z)))


def heun(drift: Drift, s: float, x: Tree, u: Tree, z: Tree, h: float) -> Tree:
    """Heun's method (explicit trapezoid), order 2."""
    k1 = drift(s, x, u, z)
    k2 = drift(s + h, advanced(x, h, (1.0, k1)), u, z)
    return advanced(x, h, (0.5, k1), (0.5, k2))


def rk4(drift: Drift, s: float, x: Tree, u: Tree, z: Tree, h: float) -> Tree:
    """The classical Runge-Kutta method, order 4."""
    k1 = drift(s, x, u, z)
    k2 = drift(s + h / 2, advanced(x, h, (0.5, k1)), u, z)
    k3 = drift(s + h / 2, advanced(x, h, (0.5, k2)), u, z)
    k4 = drift(s + h, advanced(x, h, (1.0, k3)), u, z)
    return advanced(x, h, (1 / 6, k1), (1 / 3, k2), (1 / 3, k3), (1 / 6, k4))


def rk38(drift: Drift, s: float, x: Tree, u: Tree, z: Tree, h: float) -> Tree:
    """Kutta's 3/8 rule, order 4, ``continuous(scheme=mfoc.rk38)``: what torchdiffeq calls ``rk4``."""
    k1 = drift(s, x, u, z)
    k2 = drift(s + h / 3, advanced(x, h, (1 / 3, k1)), u, z)
    k3 = drift(s + 2 * h / 3, advanced(x, h, (-1 / 3, k1), (1.0, k2)), u, z)
    k4 = drift(s + h, advanced(x, h, (1.0, k1), (-1.0, k2), (1.0, k3)), u, z)
    return advanced(x, h, (1 / 8, k1), (3 / 8, k2), (3 / 8, k3), (1 / 8, k4))
