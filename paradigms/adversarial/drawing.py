"""Figures of robustness: accuracies under attacks, and against the radius of the ball."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mfoc.figures import COLORS, INK, look, new_axes
from paradigms.drawing import Interval, draw_intervals


class Percent(NamedTuple):
    """An accuracy with its interval, in percent."""

    value: float
    low: float
    high: float

    @staticmethod
    def of(row: Interval) -> Percent:
        """From shares."""
        return Percent(100 * row.value, 100 * row.low, 100 * row.high)


def draw_attacks(rows: Mapping[str, Interval], *, title: str, confidence: float) -> Any:
    """Accuracies at one radius, an attack a line, with their intervals and numbers.

    Args:
        rows: attack -> accuracy, in the order shown from above.
        title: above the figure.
        confidence: level of the intervals.
    """
    figure, (axis,) = new_axes(6.8, 1.5 + 0.42 * len(rows), grid="x")
    for place, (name, row) in enumerate(rows.items()):
        each, style = Percent.of(row), look("standard" if name == "clean" else name, max(0, place - 1))
        axis.plot([each.low, each.high], [place, place], color=style["color"], linewidth=2, marker="|", markersize=9)
        axis.plot([each.value], [place], markersize=8, linestyle="", label=name, zorder=3, clip_on=False, **style)
        axis.annotate(
            f"{each.value:.1f} %", (1.02, place), xycoords=("axes fraction", "data"), va="center", fontsize=9, color=INK
        )
    axis.set_yticks(range(len(rows)), list(rows))
    axis.set(xlim=(0, 100), ylim=(len(rows) - 0.5, -0.5), xlabel=f"accuracy [%], {_level(confidence)}")
    axis.set_title(title, fontsize=10, loc="left")
    return figure


def draw_radii(
    curves: Mapping[str, Sequence[tuple[float, Interval]]], *, title: str, norm: str, confidence: float
) -> Any:
    """Accuracy against the radius of the ball, with intervals.

    Args:
        curves: name -> (radius, accuracy), by ascending radius, the undisturbed accuracy at 0.
        title: above the figure.
        norm: of the ball.
        confidence: level of the intervals.
    """
    figure, (axis,) = new_axes(6.4, 4.0)
    for place, (name, points) in enumerate(curves.items()):
        radii = [radius for radius, _ in points]
        draw_intervals(axis, radii, [Percent.of(row) for _, row in points], label=name, **look(name, place))
    axis.set(xlabel=f"radius ε of the {norm} ball", ylabel=f"accuracy [%], {_level(confidence)}", ylim=(-2, 102))
    axis.set_xlim(left=min(0.0, axis.get_xlim()[0]))
    axis.set_title(title, fontsize=10, loc="left")
    axis.legend(frameon=False, fontsize=9)
    return figure


def _level(confidence: float) -> str:
    return f"{100 * confidence:g} % intervals"


def draw_game(costs: Mapping[str, float], gaps: Mapping[str, Interval], *, particles: int, confidence: float) -> Any:
    """Mean costs under three adversaries, and the adversary's gaps with their intervals.

    Args:
        costs: adversary -> mean cost.
        gaps: name -> gap.
        particles: how many were measured.
        confidence: level of the intervals.
    """
    figure, (left, right) = new_axes(8.6, 2.6, 2, grid="x")
    names = ("standard", "adversarial", "minimax")
    for place, (cost, known) in enumerate(zip(costs.values(), names, strict=True)):
        style = look(known)
        left.barh([place], [cost], color=style["color"], alpha=0.5, height=0.6)
        left.annotate(f"{cost:.4g}", (1.02, place), xycoords=("axes fraction", "data"), va="center", fontsize=9)
    left.set(yticks=range(len(costs)), yticklabels=list(costs), ylim=(len(costs) - 0.5, -0.5), xlabel="mean cost")
    left.set_title(f"{particles} particle{'s' * (particles != 1)}", fontsize=10, loc="left")
    for place, gap in enumerate(gaps.values()):
        bounded = math.isfinite(gap.low) and math.isfinite(gap.high)
        ends = [gap.low, gap.high] if bounded else [gap.value] * 2
        color = COLORS[place]
        right.plot(ends, [place, place], color=color, linewidth=2, marker="|", markersize=9)
        face = color if bounded else "white"
        right.plot([gap.value], [place], marker="os"[place % 2], color=color, markerfacecolor=face, markersize=8)
    right.margins(x=0.08)
    right.axvline(0, color=INK, linewidth=0.9, linestyle=":")
    right.set(yticks=range(len(gaps)), yticklabels=list(gaps), ylim=(len(gaps) - 0.5, -0.5))
    right.set(xlabel=f"cost, {_level(confidence)}; 0 at a saddle point")
    right.set_title("what the adversary leaves", fontsize=10, loc="left")
    return figure
