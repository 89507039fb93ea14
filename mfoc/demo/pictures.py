"""The figure of a race: J against seconds, with a band over the seeds, beside what it came to on test images."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from mfoc.demo.race import Lap
from mfoc.demo.report import by_solver
from mfoc.figures import INK, look, new_figure, tidy

_FLOOR = 80.0  # per cent: accuracies below lie on the left edge, with their number
_GRID = 60
_TICKS = [digit * 10.0**power for power in range(-4, 3) for digit in (1, 2, 5)]  # of J


def race(laps: Sequence[Lap], budget: float) -> Any:
    """J of each solver against seconds, and the accuracies of all its seeds."""
    solvers = by_solver(laps)
    figure = new_figure(10.5, 4.4)
    left, right = figure.subplots(1, 2, width_ratios=[1.7, 1])
    _curves(left, solvers, budget)
    _accuracies(right, solvers)
    seeds = len({lap.seed for lap in laps})
    figure.suptitle(f"Handwritten digits: one Problem, five solvers, {budget:.3g} s each, {seeds} seeds", fontsize=12)
    return figure


def _curves(axis: Any, solvers: dict[str, list[Lap]], budget: float) -> None:
    times = [budget * k / _GRID for k in range(_GRID + 1)]
    start = max(lap.values[0] for mine in solvers.values() for lap in mine)
    least = min(min(lap.values) for mine in solvers.values() for lap in mine)
    top = 3 * start
    for order, (name, mine) in enumerate(solvers.items()):
        drawn = [[_at(lap, time) for lap in mine] for time in times]
        middle = [math.exp(_mean([math.log(value) for value in values])) for values in drawn]
        own = look(name, order)
        low, high = [min(values) for values in drawn], [max(values) for values in drawn]
        axis.fill_between(times, low, [min(value, 1e30) for value in high], color=own["color"], alpha=0.18, linewidth=0)
        label = name if middle[-1] < top else f"{name}: diverges"
        marks = (order * 2 + 2, 10)  # not one above the other
        axis.plot(times, [min(value, 1e30) for value in middle], linewidth=1.8, markevery=marks, label=label, **own)
    axis.set(yscale="log", xlim=(0, budget), ylim=(0.7 * least, top))
    ticks = [tick for tick in _TICKS if 0.7 * least <= tick <= top]
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.set(xlabel="time in the solver [s of processor]", ylabel="J over all training images")
    axis.set_title("Line: mean over seeds (of log J), band: least to largest", fontsize=9.5)
    tidy(axis, "both")
    axis.legend(frameon=False, fontsize=9, loc="upper right")


def _accuracies(axis: Any, solvers: dict[str, list[Lap]]) -> None:
    for row, (name, mine) in enumerate(solvers.items()):
        shares = [100 * lap.accuracy for lap in mine]
        own = look(name, row)
        heights = [row + 0.16 * (k - (len(shares) - 1) / 2) for k in range(len(shares))]
        inside = [(share, height) for share, height in zip(shares, heights, strict=True) if share >= _FLOOR]
        axis.scatter(*zip(*inside, strict=True) if inside else ([], []), s=34, alpha=0.85, **own)
        if len(inside) < len(shares):
            outside = [share for share in shares if share < _FLOOR]
            below = sorted({f"{share:.0f}" for share in (min(outside), max(outside))}, key=float)
            axis.text(_FLOOR + 0.4, row, f"◂ {' to '.join(below)} %", color=own["color"], va="center", fontsize=9)
        else:
            axis.plot([_mean(shares)] * 2, [row - 0.33, row + 0.33], color=INK, linewidth=1.2)
    axis.set_yticks(range(len(solvers)), list(solvers))
    axis.set(ylim=(len(solvers) - 0.4, -0.6), xlim=(_FLOOR, 100), xlabel="test accuracy [%]")
    axis.set_title("One mark for each seed, bar: mean", fontsize=9.5)
    tidy(axis, "x")


def _at(lap: Lap, time: float) -> float:
    """J at the last record up to a time; it is interpolated between records, on the logarithm."""
    after = bisect_right(lap.seconds, time)
    if after == len(lap.seconds):
        return min(lap.values[-1], 1e30)
    (t0, t1), (v0, v1) = lap.seconds[after - 1 : after + 1], lap.values[after - 1 : after + 1]
    if not (math.isfinite(v0) and math.isfinite(v1)):
        return min(v0, 1e30)
    return math.exp(math.log(v0) + (math.log(v1) - math.log(v0)) * (time - t0) / (t1 - t0))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
