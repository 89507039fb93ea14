"""The curvature pairs of limited-memory BFGS, for all rows of a block at once."""

from __future__ import annotations

import torch
from torch import Tensor


class Memory:
    """The last curvature pairs of each row, oldest first; each row fills its own at its own pace."""

    def __init__(self, size: int, like: Tensor, scale: Tensor) -> None:
        self.steps = like.new_zeros(len(like), size, like.shape[1])  # [G, m, n]; zero where there is no pair
        self.changes = torch.zeros_like(self.steps)
        self.scale = scale[:, None]

    def add(self, mask: Tensor, step: Tensor, change: Tensor) -> None:
        """Keeps a pair for the rows in the mask whose curvature is positive."""
        curvature, square = dot(step, change), dot(change, change)
        least = torch.finfo(step.dtype).eps * step.norm(dim=1) * square.sqrt()
        useful = mask & (curvature > least) & (square > 0)
        steps, changes = (
            torch.cat([old[:, 1:], new[:, None]], 1) for old, new in ((self.steps, step), (self.changes, change))
        )
        if useful.device.type == "cpu" and bool(useful.all()):
            self.steps, self.changes, self.scale = steps, changes, (curvature / square)[:, None]
            return
        self.steps, self.changes = where(useful, steps, self.steps), where(useful, changes, self.changes)
        self.scale = where(useful, (curvature / square)[:, None], self.scale)

    def times(self, slope: Tensor) -> Tensor:
        """The inverse Hessian estimate times the slope ``[G, n]``, by Nocedal & Wright (2006), eq. (7.24).

        A handful of batched products, where the two-loop recursion takes six operations a pair.
        """
        # The triangular solves need single precision at least.
        wide = torch.promote_types(slope.dtype, torch.float32)
        s, y, g, scale = (part.to(wide) for part in (self.steps, self.changes, slope[:, :, None], self.scale))
        products = s @ y.mT
        diagonal = products.diagonal(dim1=1, dim2=2)
        triangle = products.triu() + torch.diag_embed((diagonal == 0).to(wide))
        p = torch.linalg.solve_triangular(triangle, s @ g, upper=True)
        change = y.mT @ p
        right = diagonal[:, :, None] * p + scale[:, :, None] * (y @ (change - g))
        v = torch.linalg.solve_triangular(triangle.mT, right, upper=False)
        product: Tensor = (scale[:, :, None] * (g - change) + s.mT @ v)[:, :, 0]
        return product.to(slope.dtype)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of rows ``[G]``."""
    return (a * b).sum(1)


def where(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Rows of ``new`` where the mask holds, else of ``old``."""
    return torch.where(mask.view(-1, *[1] * (new.dim() - 1)), new, old)
