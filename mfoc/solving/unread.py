"""Values and residuals that steps have found, and nobody has read yet.

To read a number is to wait for the device, and for small networks it takes as long as the arithmetic. What a step has
found is therefore kept where it is, and read for many steps at once.
"""

from __future__ import annotations

import math
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from mfoc import tree

Record = dict[str, float]  # of one step: its number, J, the residual, ...

_FEW = 2**14  # numbers in a gradient up to which it may be kept for a while in place of its norm


class Unread:
    """The steps whose numbers are still to be read, in order."""

    def __init__(self) -> None:
        self._steps: list[tuple[Record, Tensor, list[Any], bool]] = []  # J, slopes, and whether these are norms
        self._few: bool | None = None
        self._least: float | None = None  # from which on norms are right; None: look at each
        self._bad: Record | None = None  # for good: whoever reads it first may not pass it on

    def add(self, record: Record, value: Tensor, slopes: list[Any], *, norms: bool = False) -> None:
        """Takes in what a step has found; the record's two numbers are filled in by ``read``.

        Args:
            record: of the step.
            value: J.
            slopes: the leaves of its gradient, or their norms: numbers, or scalars.
            norms: whether they are norms.
        """
        if self._few is None and not norms:
            self._few = sum(slope.numel() for slope in slopes) <= _FEW
            self._least = tree.least(slopes)
        known = norms or not self._few
        self._steps.append((record, value, slopes if norms or self._few else self._norms(slopes), known))

    def own(self) -> None:
        """Holds nothing of the last gradient but its norms: whoever is handed it may write into it."""
        if self._steps and not self._steps[-1][3]:
            record, value, slopes, _ = self._steps[-1]
            self._steps[-1] = record, value, self._norms(slopes), True

    def read(self) -> Record | None:
        """Fills in the records of all steps; the first in which a number is not finite, if there is one."""
        steps = self._steps
        # One call for all: in it the norms of small gradients take a third of the time.
        fresh = iter(self._norms([slope for _, _, slopes, known in steps if not known for slope in slopes]))
        norms = [size for _, _, slopes, known in steps for size in (slopes if known else islice(fresh, len(slopes)))]
        numbers = _numbers(norms, [value for _, value, _, _ in steps])
        first = 0
        for (record, _, slopes, _), value in zip(steps, numbers[len(norms) :], strict=True):
            record["value"], record["residual"] = value, math.hypot(*numbers[first : first + len(slopes)])
            first += len(slopes)
        read, self._steps = self._steps, []
        if self._bad is None:
            self._bad = next((record for record, *_ in read if not finite(record)), None)
        return self._bad

    def _norms(self, slopes: list[Tensor]) -> list[Any]:
        """The norms of leaves: numbers where it takes no time to look at them, else scalars."""
        if self._least is None or not slopes:
            return tree.norms(slopes)
        sizes = [size.item() for size in torch._foreach_norm(slopes)]
        if self._least <= min(sizes) and max(sizes) < math.inf:
            return sizes
        return tree.floats(tree.norms(slopes))


def _numbers(norms: list[Any], values: list[Tensor]) -> list[float]:
    """What was found, in numbers; on a GPU it is waited for once."""
    unread = tree.floats([*(size for size in norms if isinstance(size, Tensor)), *values])
    if len(unread) == len(norms) + len(values):
        return unread
    scalars = iter(unread)
    return [*(next(scalars) if isinstance(size, Tensor) else size for size in norms), *scalars]


def finite(record: Record) -> bool:
    """Whether J and the residual of a step are numbers."""
    return math.isfinite(record["value"]) and math.isfinite(record["residual"])
