"""What the figures of paradigms share: estimates drawn with their intervals, which stay on the axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mfoc.statistics import Interval as Interval


def draw_intervals(
    axis: Any,
    x: Sequence[float],
    found: Sequence[Interval],
    *,
    color: str,
    marker: str,
    label: str,
    joined: bool = True,
) -> None:
    """Points with vertical intervals, joined by a line.

    A hollow point has an interval without ends. A cross at the upper edge stands for a number that is not finite.

    Args:
        axis: of matplotlib.
        x: where the points are ``[n]``.
        found: what is drawn there ``[n]``.
        color: of all.
        marker: of the points.
        label: in the legend.
        joined: whether a line goes through the points.
    """
    values = [each.value if math.isfinite(each.value) else math.nan for each in found]
    line = {"linewidth": 1.6} if joined else {"linestyle": ""}
    axis.plot(x, values, color=color, marker=marker, markersize=5, label=label, zorder=3, **line)
    shown = [(a, each) for a, each in zip(x, found, strict=True) if math.isfinite(each.value)]
    ends = [(a, e.low, e.high) for a, e in shown if math.isfinite(e.low) and math.isfinite(e.high)]
    for a, low, high in ends:
        axis.plot([a, a], [low, high], color=color, marker="_", markersize=7, linewidth=1.2, alpha=0.8, zorder=2)
    open_ended = [(a, e.value) for a, e in shown if not (math.isfinite(e.low) and math.isfinite(e.high))]
    for a, value in open_ended:
        axis.plot([a], [value], marker=marker, color=color, markersize=6, markerfacecolor="white", zorder=4)
    lost = [a for a, each in zip(x, found, strict=True) if not math.isfinite(each.value)]
    if lost:
        edge = {"transform": axis.get_xaxis_transform(), "clip_on": False, "zorder": 4}
        axis.plot(lost, [1.0] * len(lost), "x", color=color, markersize=7, markeredgewidth=2, **edge)
    if lost and not shown:
        axis.set_yticks([])  # it has no scale
        axis.text(0.5, 0.5, "not finite", transform=axis.transAxes, ha="center", va="center", color=color)


def log_scaled(axis: Any, values: Sequence[float], ratio: float = 30.0) -> bool:
    """Makes the vertical axis logarithmic where positive numbers span more than a ratio; says whether it did.

    The axis then ends at half the least number: an interval that goes below zero ends there.
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite or min(finite) <= 0 or max(finite) < ratio * min(finite):
        return False
    axis.set_yscale("log", nonpositive="clip")
    axis.set_ylim(bottom=min(finite) / 2)
    return True
