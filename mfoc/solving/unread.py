"""Values and residuals that steps have found, and nobody has read yet.

To read a number is to wait for the device, and for small networks it takes as long as the arithmetic. What a step has
found is therefore kept where it is, and read for many steps at once.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mfoc import tree

Record = dict[str, float]  # of one step: its number, J, the residual, ...

_FEW = 2**14  # numbers in a gradient up to which it may be kept for a while in place of its norm


class Unread:
    """The steps whose numbers are still to be read, in order."""

    def __init__(self) -> None:
        self._steps: list[tuple[Record, Tensor, list[Tensor]]] = []  # with J, and the gradient or its leaves' norms
        self._few: bool | None = None
        self._bad: Record | None = None  # for good: whoever reads it first may not pass it on

    def add(self, record: Record, value: Tensor, slopes: list[Tensor]) -> None:
        """Takes in what a step has found, J and its gradient; the record's two numbers are filled in by ``read``."""
        if self._few is None:
            self._few = sum(slope.numel() for slope in slopes) <= _FEW
        self._steps.append((record, value, slopes if self._few else list(torch._foreach_norm(slopes))))

    def own(self) -> None:
        """Holds nothing of the last gradient but its norms: whoever is handed it may write into it."""
        if self._steps and self._few:
            record, value, slopes = self._steps[-1]
            self._steps[-1] = record, value, tree.norms(slopes)

    def read(self) -> Record | None:
        """Fills in the records of all steps; the first in which a number is not finite, if there is one."""
        steps = self._steps
        # One call for all: in it the norms of small gradients take a third of the time. The norm of a norm is itself.
        norms = list(torch._foreach_norm([slope for _, _, slopes in steps for slope in slopes])) if steps else []
        numbers = tree.floats([*norms, *(value for _, value, _ in steps)])
        first = 0
        for (record, _, slopes), value in zip(steps, numbers[len(norms) :], strict=True):
            record["value"], record["residual"] = value, math.hypot(*numbers[first : first + len(slopes)])
            first += len(slopes)
        read, self._steps = self._steps, []
        if self._bad is None:
            self._bad = next((record for record, _, _ in read if not finite(record)), None)
        return self._bad


def finite(record: Record) -> bool:
    """Whether J and the residual of a step are numbers."""
    return math.isfinite(record["value"]) and math.isfinite(record["residual"])
