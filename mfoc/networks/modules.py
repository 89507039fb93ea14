"""Modules that suit control problems: residual steps, and dropout whose mask comes from the data."""

from __future__ import annotations

from torch import Tensor, nn

from mfoc.checks import check_instance, check_non_negative
from mfoc.errors import InvalidValue
from mfoc.tree import Tree


class Residual(nn.Module):
    """x + step * block(x): one Euler step of a residual network.

    Args:
        block: a module that keeps the shape.
        step: the step size.
    """

    def __init__(self, block: nn.Module, step: float = 1.0) -> None:
        super().__init__()
        check_instance(nn.Module, "a module that keeps the shape", block=block)
        self.block, self.step = block, step

    def forward(self, x: Tensor) -> Tensor:
        """``[N, ...]`` to ``[N, ...]``."""
        result: Tensor = x + self.step * self.block(x)
        return result


class MaskedDropout(nn.Module):
    """Dropout whose mask comes from the data, so that the dynamics stay pure: x * z[key] / (1 - p).

    It must be a stage of its own: a layer inside another module is not handed the data.

    Args:
        p: probability that the mask was drawn with (a mask entry is 0 with probability p).
        key: where the mask lies in the data, a dict; the mask has the state's shape ``[N, ...]``.
    """

    def __init__(self, p: float, key: str) -> None:
        super().__init__()
        check_non_negative(p=p)
        if p >= 1:
            raise InvalidValue(f"p is {p!r}; expected a probability in [0, 1)")
        self.p, self.key = p, key

    def forward(self, x: Tensor, z: Tree) -> Tensor:
        """``[N, ...]`` and the data to ``[N, ...]``; the identity in evaluation mode."""
        if not self.training:
            return x
        if not isinstance(z, dict) or self.key not in z:
            raise InvalidValue(f"no dropout mask: expected the data to be a dict with key {self.key!r}")
        masked: Tensor = x * z[self.key].to(x.dtype) / (1 - self.p)
        return masked
