"""A quadratic model, made small within a ball by conjugate gradients (Steihaug 1983; Toint 1981).

Nocedal & Wright (2006), "Numerical Optimization", alg. 7.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mfoc import tree
from mfoc.printing import by_identity


@by_identity
class Descent(NamedTuple):
    """Where conjugate gradients ended.

    Attributes:
        step: s ``[n]``.
        image: the matrix times s ``[n]``.
        products: how many were taken.
        curved: whether a direction of negative curvature was met.
        bounded: whether s lies on the boundary of the ball.
    """

    step: Tensor
    image: Tensor
    products: int
    curved: bool
    bounded: bool


def steihaug(
    slope: Tensor,
    product: Callable[[Tensor], Tensor],
    radius: float,
    *,
    share: float,
    products: int,
    free: Tensor | None = None,
) -> Descent:
    """A step s, ||s|| <= radius, that makes <slope, s> + <s, H s> / 2 at least as small as the best along -slope.

    It ends where the model's slope is a share of the one at the start, at the boundary (to which directions of negative
    curvature are followed), or when the products are spent.

    Args:
        slope: ``[n]``.
        product: v -> H v, H symmetric.
        radius: of the ball; infinite for none, and a direction of negative curvature is then not followed.
        share: of the slope's norm.
        products: most products.
        free: the entries that s may have ``[n]``, boolean; all when None. The slope is then meant on those.
    """
    step, image = torch.zeros_like(slope), torch.zeros_like(slope)
    residual = slope if free is None else slope * free
    unit = tree.power_of_two(residual.abs().amax())  # in it no square leaves the dtype, and division by it is exact
    residual = residual / unit
    direction = -residual
    square = residual @ residual
    left, size = tree.floats([square, unit])
    radius /= size

    def found(step: Tensor, image: Tensor, products: int, curved: bool, bounded: bool) -> Descent:
        return Descent(unit * step, unit * image, products, curved, bounded)

    goal = share**2 * left
    for k in range(products):
        if left <= goal:
            return found(step, image, k, False, False)
        moved = product(direction)
        # What the next iteration begins with is made before it is known whether there is one, so that the host waits
        # once a product.
        bent = direction @ moved
        length = square / bent
        longer = step + length * direction
        residual = residual + length * (moved if free is None else moved * free)
        before, square = square, residual @ residual
        curvature, size, left = tree.floats([bent, tree.length(longer), square])
        if not math.isfinite(curvature):
            return found(step, image, k + 1, False, False)
        if curvature <= 0 or size >= radius:
            if math.isinf(radius):
                return found(step, image, k + 1, True, False)
            reach = _to_boundary(step, direction, radius)
            return found(step + reach * direction, image + reach * moved, k + 1, curvature <= 0, True)
        step, image = longer, image + length * moved
        direction = (square / before) * direction - residual
    return found(step, image, products, False, False)


def _to_boundary(step: Tensor, direction: Tensor, radius: float) -> float:
    """The t >= 0 at which ||step + t direction|| is the radius."""
    size = tree.length(direction)
    along, begun = direction / size, step / radius  # of the ball of radius 1, so that no square leaves the dtype
    b, square, long = tree.floats([begun @ along, begun @ begun, size])
    room = max(1 - square, 0.0)
    root = math.sqrt(b * b + room)
    reach = room / (b + root) if b > 0 else root - b  # the form that does not cancel
    return reach * (radius / long)
