"""Curves of several runs, and the course of a solve: J and residual, by step and by second.

This is below the public doors: it does not check its arguments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mfoc.drawing.scales import (
    DASHES,
    Array,
    clipped,
    finite,
    log_with_zero,
    marks,
    numbers,
    say,
    thinned,
    whole_ticks,
    wide,
    wrapped,
)
from mfoc.figures import look, new_axes, new_figure, sized, tidy, words
from mfoc.printing import by_identity


@by_identity
class Run(NamedTuple):
    """One solve as it is drawn.

    Attributes:
        name: of the solver.
        history: one record a step, as in ``Solution.history``.
        step: the last step.
        value: J there.
        residual: ||E dH/du|| there.
        said: how it ended, in words.
    """

    name: str
    history: Sequence[Mapping[str, float]]
    step: int
    value: float
    residual: float
    said: str = ""


def curves(
    series: Mapping[str, tuple[Array, Array]],
    x_label: str,
    y_label: str,
    title: str,
    log: bool,
    log_x: bool,
) -> Any:
    """Several curves on one pair of axes; see ``mfoc.plot.curves``."""
    figure, (axis,) = new_axes(7, 4.2)
    draw(axis, series)
    axis.set(xlabel=words(x_label), ylabel=words(y_label), title=words(title))
    heights, places = finite(y for _, y in series.values()), finite(x for x, _ in series.values())
    if log and heights.size and heights.min() > 0:  # a logarithm shows no negative J
        axis.set_yscale("log")
    if log_x:
        log_with_zero(axis, places, "x")
    beside(figure, axis)
    return figure


def draw(axis: Any, series: Mapping[str, tuple[Array, Array]]) -> None:
    """Lines told apart by colour, dashes and markers, wide ones below narrow ones: none hides another."""
    for index, (name, (x, y)) in enumerate(series.items()):
        place, middle, low, high = thinned(x, np.where(np.isfinite(y), y, np.nan))
        line = {**look(name, index), "linestyle": DASHES[index % len(DASHES)], "zorder": 2 + 0.01 * index}
        line |= {"markevery": marks(len(place), index, len(series)), "markersize": 5.5 * sized(line["marker"])}
        if line["marker"] not in "+x":  # which are edges only
            line |= {"markeredgecolor": "white", "markeredgewidth": 0.5}
        axis.plot(place, middle, label=clipped(name, 40), linewidth=max(1.2, 2.4 - 0.25 * index), **line)
        if middle is not low:
            axis.fill_between(place, low, high, color=line["color"], alpha=0.15, linewidth=0)
    if not any(np.isfinite(y).any() for _, y in series.values()):
        say(axis, "nothing finite to show")


def beside(figure: Any, axis: Any) -> None:
    """A legend: within the axes where names are short and few, beside them else, where it covers nothing."""
    handles, names = axis.get_legend_handles_labels()
    if max(map(len, names), default=0) <= 16 and len(names) <= 6:
        axis.legend(frameon=False, handlelength=3.2)
    else:
        figure.legend(handles, names, loc="outside right upper", frameon=False, handlelength=3.2)


def course(runs: Sequence[Run]) -> Any:
    """J and the residual of some solves: above by step, below by second; see ``Solution.plot``."""
    figure = new_figure(8.6, 5.6)
    panels = figure.subplots(2, 2)
    for row, clock in enumerate(("step", "seconds")):
        for column, quantity in enumerate(("value", "residual")):
            axis = panels[row][column]
            tidy(axis, "both")
            _course(axis, runs, clock, quantity)
            axis.set_ylabel("objective J" if quantity == "value" else "residual  ‖E ∂H/∂u‖")
    if len(runs) == 1:
        figure.suptitle(wrapped(": ".join(filter(None, [runs[0].name, runs[0].said])), 90), fontsize=11)
    else:
        handles, names = panels[0][0].get_legend_handles_labels()
        columns = max(1, min(len(runs), 100 // (max(map(len, names)) + 8)))
        figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False, handlelength=3.2)
    return figure


def _course(axis: Any, runs: Sequence[Run], clock: str, quantity: str) -> None:
    series = {run.name: _points(run, clock, quantity) for run in runs}
    draw(axis, series)
    heights = finite(y for _, y in series.values())
    if wide(heights) or (quantity == "residual" and heights.size and heights.max() > 0):
        log_with_zero(axis, heights)
    if clock == "step":
        whole_ticks(axis)
    else:  # beside a slow run a quick one would be a line at the left
        ends = [float(x.max()) for x, _ in series.values() if x.size and x.max() > 0]
        if ends and max(ends) > 20 * min(ends):
            axis.set_xscale("symlog", linthresh=min(ends) / 10, linscale=1)
            axis.set_xlim(left=0)
    axis.set_xlabel("step" if clock == "step" else "wall time [s]")


def _points(run: Run, clock: str, quantity: str) -> tuple[Array, Array]:
    """Each record at its step or second; by step the end of the solve, too (its second is not recorded)."""
    records = [record for record in run.history if quantity in record and clock in record]
    x, y = [record[clock] for record in records], [record[quantity] for record in records]
    if clock == "step":
        x, y = [*x, run.step], [*y, getattr(run, quantity)]
    return numbers(x), numbers(y)


def points(solution: Any, quantity: str = "value", clock: str = "step") -> tuple[Array, Array]:
    """A solution's "value" or "residual" by "step" or by "seconds", as a curve."""
    run = Run("", solution.history, solution.last.step, solution.value, solution.residual)
    return _points(run, clock, quantity)
