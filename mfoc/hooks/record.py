"""Records of a solve."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from mfoc.checks import check_callable, check_integer, check_signature
from mfoc.solving import Iterate


class Record:
    """Records what a function says of the iterate.

    Args:
        function: ``function(iterate) -> value``.
        every: steps between records.

    Attributes:
        steps: the steps at which it was called.
        seconds: time since the start of the solve at each of them, less the time spent in the function.
        values: what it returned.
    """

    def __init__(self, function: Callable[[Iterate], Any], *, every: int = 1) -> None:
        check_callable("a function of the iterate", function=function)
        check_signature(("iterate",), function=function)
        check_integer(1, every=every)
        self._function, self._every = function, every
        self.steps: list[int] = []
        self.seconds: list[float] = []
        self.values: list[Any] = []
        self._began = time.perf_counter()

    def start(self, steps: int) -> None:
        """Starts the clock, and the record anew."""
        self.steps, self.seconds, self.values = [], [], []
        self._began = time.perf_counter()

    def __call__(self, iterate: Iterate) -> None:
        """Records, when it is time."""
        if iterate.step % self._every == 0:
            called = time.perf_counter()
            self.steps.append(iterate.step)
            self.seconds.append(called - self._began)
            self.values.append(self._function(iterate))
            self._began += time.perf_counter() - called
