"""Many tensors treated as one, by torch's calls for lists: what is written for a tensor works for a whole network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Many:
    """A list of tensors with what an optimiser's formula needs of ``torch.Tensor``; the other operand has as many.

    On a GPU a call for a list is a few kernels, however many tensors there are.
    """

    def __init__(self, tensors: list[Tensor]) -> None:
        self.tensors = tensors

    def __sub__(self, other: Many) -> Many:
        return Many(list(torch._foreach_sub(self.tensors, other.tensors)))

    def __mul__(self, other: Many | float) -> Many:
        return Many(list(torch._foreach_mul(self.tensors, _operand(other))))

    def __truediv__(self, other: Many) -> Many:
        return Many(list(torch._foreach_div(self.tensors, other.tensors)))

    def add_(self, other: Many | float) -> Many:
        torch._foreach_add_(self.tensors, _operand(other))
        return self

    def sub_(self, other: Many) -> Many:
        torch._foreach_sub_(self.tensors, other.tensors)
        return self

    def mul_(self, other: Many | float) -> Many:
        torch._foreach_mul_(self.tensors, _operand(other))
        return self

    def div_(self, other: Many) -> Many:
        torch._foreach_div_(self.tensors, other.tensors)
        return self

    def addcmul_(self, one: Many, other: Many, *, value: float = 1.0) -> Many:
        torch._foreach_addcmul_(self.tensors, one.tensors, other.tensors, value)
        return self

    def lerp_(self, end: Many, weight: Many) -> Many:
        torch._foreach_lerp_(self.tensors, end.tensors, weight.tensors)
        return self

    def clamp_(self, least: float, most: float | None = None) -> Many:
        torch._foreach_clamp_min_(self.tensors, least)
        if most is not None:
            torch._foreach_clamp_max_(self.tensors, most)
        return self

    def sqrt_(self) -> Many:
        torch._foreach_sqrt_(self.tensors)
        return self

    def reciprocal_(self) -> Many:
        torch._foreach_reciprocal_(self.tensors)
        return self

    def copy_(self, other: Many) -> Many:
        torch._foreach_copy_(self.tensors, other.tensors)
        return self


def _operand(other: Many | float) -> Any:
    return other.tensors if isinstance(other, Many) else other
