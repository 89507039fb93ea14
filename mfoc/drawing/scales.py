"""Axes that show what is on them: which scale, which limits, which ticks, and text that stays inside.

This is below the public doors: it does not check its arguments.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mfoc.errors import require
from mfoc.figures import words

Array = NDArray[np.float64]
DASHES: tuple[Any, ...] = ("-", (0, (6, 2)), (0, (2, 1.4)), (0, (6, 1.5, 1.5, 1.5)), (0, (3, 1)), (0, (1, 1)))
LARGEST = 1e200  # sizes above are drawn as infinity: matplotlib's limits of axes would overflow
_DECADES = 20.0  # the ratio of largest to smallest from which on a logarithm says more
_APART = 0.09  # of the height of an axis, between two ticks that are read


def numbers(values: Sequence[float] | Tensor) -> Array:
    """Numbers of a list or a tensor, on any device, as an array ``[n]``; those too large for an axis are infinite.

    Raises:
        TypeError: they are no real numbers.
    """
    if isinstance(values, Tensor) and values.is_complex():
        raise TypeError("complex numbers have no place on an axis")
    if isinstance(values, Tensor):
        found = values.detach().cpu().double().numpy()
    else:
        found = np.array([float(value) for value in values], dtype=float)
    return np.where(np.abs(found) > LARGEST, np.copysign(math.inf, found), found)


def finite(parts: Iterable[Array]) -> Array:
    """What is finite of some arrays, as one."""
    flat = np.concatenate([np.ravel(part) for part in parts] or [np.zeros(0)])
    kept: Array = flat[np.isfinite(flat)]
    return kept


def wide(values: Array) -> bool:
    """Whether finite values are all positive and span so much that a logarithm shows them better."""
    return bool(values.size and values.min() > 0 and values.max() > _DECADES * values.min())


def log_with_zero(axis: Any, values: Array, which: str = "y") -> None:
    """A logarithmic axis that also shows zero, and what is negative: linear below the smallest size on it."""
    sizes = np.abs(values[values != 0])
    threshold = float(sizes.min()) if sizes.size else 1.0
    if sizes.size:  # what is rounding beside the rest needs no decades of its own
        threshold = max(threshold, 1e-8 * float(sizes.max()))
    if values.size and values.min() > 0:
        getattr(axis, f"set_{which}scale")("log")
        return
    getattr(axis, f"set_{which}scale")("symlog", linthresh=threshold, linscale=1)
    if values.size and values.min() >= 0:
        # A marker at zero is seen whole.
        getattr(axis, f"set_{which}lim")(**{"bottom" if which == "y" else "left": -0.4 * threshold})


def signed_ticks(axis: Any, threshold: float) -> None:
    """Ticks of a symmetric logarithm: zero, and powers of ten that are far enough apart to be read."""
    bottom, top = axis.get_ylim()
    least = math.ceil(math.log10(threshold))
    most = math.floor(math.log10(max(abs(bottom), abs(top), 10.0**least)))
    powers = [sign * 10.0**power for power in range(most, least - 1, -1) for sign in (-1, 1)]
    ticks: list[float] = []
    for tick in (0.0, *(power for power in powers if bottom <= power <= top)):
        if all(abs(_share(axis, tick) - _share(axis, other)) >= _APART for other in ticks):
            ticks.append(tick)
    axis.set_yticks(sorted(ticks))
    axis.yaxis.set_minor_locator(require("matplotlib.ticker", "plot").NullLocator())


def _share(axis: Any, y: float) -> float:
    """Where a value is on a vertical axis: 0 at the bottom, 1 at the top."""
    return float(axis.transAxes.inverted().transform(axis.transData.transform((axis.get_xlim()[0], y)))[1])


def whole_ticks(axis: Any, which: str = "x") -> None:
    """Ticks at whole numbers only: a stage and a step are counted."""
    locator = require("matplotlib.ticker", "plot").MaxNLocator(nbins="auto", integer=True, min_n_ticks=1)
    getattr(axis, f"{which}axis").set_major_locator(locator)


def named_ticks(axis: Any, names: Sequence[str], most: int = 10) -> None:
    """Names below an axis at 0, 1, 2 ..: at most so many, shortened, and aslant where they would meet."""
    every = -(-len(names) // most)
    shown = [clipped(name, 18) for name in names[::every]]
    room = 60 / max(len(shown), 1)
    aslant = max(map(len, shown), default=0) > max(2.0, room / 4)
    turned = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if aslant else {}
    axis.set_xticks(range(0, len(names), every), shown, fontsize=8.5, **turned)


def clipped(text: str, most: int) -> str:
    """A text of at most so many characters, which can be drawn."""
    return words(text if len(text) <= most else text[: most - 1] + "…")


def wrapped(text: str, width: int, lines: int = 2) -> str:
    """A text in at most so many lines of so many characters, broken at words."""
    rows: list[str] = [""]
    for word in text.split():
        fits = len(rows[-1]) + len(word) < width
        rows = [*rows[:-1], f"{rows[-1]} {word}".strip()] if fits or not rows[-1] else [*rows, word]
    return words("\n".join([*rows[: lines - 1], clipped(" ".join(rows[lines - 1 :]), width)]).strip())


def marks(count: int, index: int, of: int) -> tuple[int, int]:
    """Where a line of ``count`` points has its markers: some eight, and not where other lines have theirs."""
    every = max(1, -(-count // 8))
    return (index * every // max(of, 1)) % every, every


def thinned(x: Array, y: Array, most: int = 400) -> tuple[Array, Array, Array, Array]:
    """Points of a line of at most so many: x, the median of y in each bin, the least and the largest.

    Each of the four is ``[n]``. What is not finite is left out of its bin; a bin of nothing else is NaN.
    """
    if len(x) <= most:
        return x, y, y, y
    bins = np.array_split(np.arange(len(x)), most)
    kept = [finite([y[rows]]) for rows in bins]
    seen = [part if part.size else np.array([math.nan]) for part in kept]
    middle = np.array([float(np.median(part)) for part in seen])
    low, high = np.array([part.min() for part in seen]), np.array([part.max() for part in seen])
    return np.array([float(x[rows].mean()) for rows in bins]), middle, low, high


def say(axis: Any, text: str) -> None:
    """A sentence in the middle of an axis that has nothing else to show."""
    where = {"xycoords": "axes fraction", "ha": "center", "va": "center"}
    axis.annotate(text, (0.5, 0.5), color="#777777", fontsize=9, **where)
