"""Values and residuals that steps have found, and nobody has read yet.

To read a number is to wait for the device, and for small networks it takes as long as the arithmetic. What a step has
found is therefore kept where it is, and read for many steps at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from mfoc import tree
from mfoc.solving.records import Info

Record = dict[str, float]  # of one step: its number, J, the residual, ...

_FEW = 2**14  # numbers in a gradient up to which it may be kept for a while in place of its norm


@dataclass(eq=False)
class _Step:
    record: Record
    value: Tensor
    slopes: list[Tensor]  # the gradient, or the norms of its leaves


class Unread:
    """The steps whose numbers are still to be read, in order."""

    def __init__(self) -> None:
        self._steps: list[_Step] = []

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, record: Record, info: Info) -> None:
        """Takes in what a step has found; ``value`` and ``residual`` of its record are filled in by ``read``."""
        slopes = tree.tensors(info.slopes)
        if sum(leaf.numel() for leaf in slopes) > _FEW:
            slopes = tree.norms(slopes)
        self._steps.append(_Step(record, info.value, slopes))

    def read(self) -> Record | None:
        """Fills in the records of all steps; the first in which a number is not finite, if there is one."""
        steps = self._steps
        norms = tree.norms([step.slopes for step in steps])  # the norm of a norm is itself
        numbers = iter(tree.floats([*(step.value for step in steps), *norms]))
        for step in steps:
            step.record["value"] = next(numbers)
        for step in steps:
            step.record["residual"] = math.hypot(*(next(numbers) for _ in step.slopes))
        self._steps = []
        return next((step.record for step in steps if not finite(step.record)), None)


def finite(record: Record) -> bool:
    """Whether J and the residual of a step are numbers."""
    return math.isfinite(record["value"]) and math.isfinite(record["residual"])
