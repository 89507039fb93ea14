"""A quadratic model, made small within a ball and a box: a Cauchy point, then conjugate gradients on faces.

Lin & More (1999), "Newton's method for large bound-constrained optimization problems", SIAM J. Optim. 9(4), sec. 2-4.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mfoc import tree
from mfoc.solvers.steihaug import Descent, steihaug

_DECREASE = 1e-2  # share of the decrease that the slope promises, asked of the Cauchy point and of a projected search
_HALVINGS = 30


@dataclass(frozen=True, eq=False)
class Boxed:
    """The model <slope, s> + <s, H s> / 2 of steps s from a point of a box.

    Attributes:
        point: ``[n]``.
        slope: ``[n]``.
        product: v -> H v.
        low: ``[n]``, may be infinite.
        high: ``[n]``, may be infinite.
    """

    point: Tensor
    slope: Tensor
    product: Callable[[Tensor], Tensor]
    low: Tensor
    high: Tensor

    def projected_slope(self, slope: Tensor, at: Tensor) -> Tensor:
        """A slope ``[n]`` at a point, without the entries that press it against a bound."""
        pressed = ((at <= self.low) & (slope > 0)) | ((at >= self.high) & (slope < 0))
        return slope.masked_fill(pressed, 0.0)

    def descend(self, radius: float, *, share: float, products: int) -> Descent:
        """A step that stays in the box; as ``steihaug`` otherwise.

        Conjugate gradients run on the entries that are free at the Cauchy point, and again when their step, projected
        onto the box, has reached another face: until the projected slope is a share of the one at the start.
        """
        goal = share * float(tree.length(self.projected_slope(self.slope, self.point)))
        at, curved, face = self._cauchy(radius), False, None
        while at.products < products:
            here, slope = self.landed(at.step), self.slope + at.image
            free = (here > self.low) & (here < self.high)
            size = float(tree.length(slope * free))
            if size <= goal or size == 0 or (face is not None and torch.equal(free, face)):
                break
            left = products - at.products
            found = steihaug(slope, self.product, radius, share=goal / size, products=left, free=free)
            curved, face = curved or found.curved, free
            at = self._searched(at, found)
            if found.bounded or found.curved:
                break
        return at._replace(curved=curved)

    def landed(self, step: Tensor) -> Tensor:
        """Where a step ends, on a bound to the bit if it was projected there: a sum may be off by its rounding."""
        at = torch.clamp(self.point + step, self.low, self.high)
        for bound in (self.low, self.high):
            near = 4 * torch.finfo(at.dtype).eps * (bound.abs() + self.point.abs())
            at = torch.where(bound.isfinite() & ((at - bound).abs() <= near), bound, at)
        return at

    def _cauchy(self, radius: float) -> Descent:
        """A point of the path along which the projection of -slope leads, that lowers the model enough."""
        along = self.projected_slope(self.slope, self.point)
        size = float(tree.length(along))
        if size == 0:
            return Descent(torch.zeros_like(along), torch.zeros_like(along), 0, False, False)
        unit = along / size  # whose square is no smaller than the dtype holds
        curvature = float(unit @ self.product(unit))
        reach = radius if math.isfinite(radius) else 1.0 + float(tree.length(self.point))
        length = min(1 / curvature if curvature > 0 else math.inf, reach / size)
        spent = 1
        while True:
            spent += 1
            step = self._into(-length * self.slope)
            image = self.product(step)
            promised = float(self.slope @ step)
            enough = promised + float(step @ image) / 2 <= _DECREASE * promised and float(tree.length(step)) <= reach
            if enough or spent == _HALVINGS:
                return Descent(step, image, spent, False, False)
            length /= 2

    def _searched(self, at: Descent, found: Descent) -> Descent:
        """As far along a step of conjugate gradients, projected onto the box, as lowers the model enough."""
        slope = self.slope + at.image
        length, spent = 1.0, at.products + found.products
        whole = at.step + found.step
        if torch.equal(self._into(whole), self.point + whole - self.point):  # inside: H times it is known
            return Descent(whole, at.image + found.image, spent, False, found.bounded)
        for _ in range(_HALVINGS):
            step = self._into(at.step + length * found.step)
            change = step - at.step
            image = self.product(change)
            spent += 1
            promised = float(slope @ change)
            if promised + float(change @ image) / 2 <= _DECREASE * min(promised, 0.0):
                return Descent(step, at.image + image, spent, False, False)
            length /= 2
        return at._replace(products=spent)

    def _into(self, step: Tensor) -> Tensor:
        """The step to where ``step`` lands when it is projected onto the box."""
        return torch.clamp(self.point + step, self.low, self.high) - self.point
