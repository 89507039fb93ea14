"""What evaluations of every paradigm show: progress while they run, and intervals when they are done."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from torch import Tensor

from mfoc import MissingExtra
from mfoc.deprecation import aliases
from mfoc.hooks import progress_display
from mfoc.statistics import mean_interval

__getattr__ = aliases(__name__, {"normal_interval": "paradigms.reporting.student_interval"})


@contextmanager
def progress_bar(label: str, total: int, *, shown: bool) -> Iterator[Callable[[str], None]]:
    """A progress bar of so many moves, where rich is installed: yields a function that moves it on and shows a word."""
    try:
        display = progress_display() if shown else None
    except MissingExtra:
        display = None
    if display is None:
        yield lambda word: None
        return
    with display:
        task = display.add_task(label, total=total, figures="")
        yield lambda word: display.update(task, advance=1, figures=word)


class Estimate(NamedTuple):
    """A mean with an interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


def student_interval(sample: Tensor, confidence: float) -> Estimate:
    """The mean of a sample ``[n]`` with Student's interval, n - 1 degrees of freedom.

    The ends are infinite for a sample of one, or with members that are not finite.
    """
    mean, half = mean_interval(sample, confidence)
    if math.isinf(half):
        return Estimate(mean, -half, half)
    return Estimate(mean, mean - half, mean + half)
