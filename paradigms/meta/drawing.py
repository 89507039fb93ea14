"""The figure of adaptation: query loss and accuracy by inner step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from mfoc.figures import look, new_axes
from paradigms.drawing import Interval, draw_intervals, log_scaled
from paradigms.reporting import Estimate

_OTHERS = (1, 0, 3, 4, 5, 6)  # looks that are not the paradigm's own


class Progress(NamedTuple):
    """Estimates after numbers of inner steps."""

    steps: Sequence[int]
    losses: Sequence[Estimate]
    accuracies: Sequence[Estimate | None]


def draw_adaptation(found: Mapping[str, Progress], *, tasks: int, confidence: float) -> Any:
    """A curve for each learner, the accuracies beside where all of them have some.

    Args:
        found: learner's name -> its estimates.
        tasks: of the first.
        confidence: level of the intervals.
    """
    classes = all(None not in each.accuracies for each in found.values())
    known = sorted({step for each in found.values() for step in each.steps})
    figure, axes = new_axes(8.6 if classes else 5.6, 3.8, 1 + classes)
    for place, (name, each) in enumerate(found.items()):
        style = look(name, _OTHERS[(place - 1) % len(_OTHERS)]) if place else look("meta")
        at = [step + 0.008 * (known[-1] - known[0]) * (place - (len(found) - 1) / 2) for step in each.steps]
        draw_intervals(axes[0], at, each.losses, label=name, **style)
        if classes:
            draw_intervals(axes[1], at, _percent(each.accuracies), label=name, **style)
    if not log_scaled(axes[0], [row.value for each in found.values() for row in each.losses]):
        axes[0].set_ylim(bottom=min(0.0, axes[0].get_ylim()[0]))
    level = f"{100 * confidence:g} % intervals, {tasks} tasks"
    axes[0].set_title(f"query loss, {level}" if not classes else "query loss", fontsize=10, loc="left")
    axes[0].set_ylabel("query loss")
    if classes:
        axes[1].set(ylabel="query accuracy [%]", ylim=(-2, 102))
        axes[1].set_title(f"accuracy, {level}", fontsize=10, loc="left")
    for axis in axes:
        axis.set_xlabel("inner steps")
        apart = all(later - step > 0.04 * (known[-1] - known[0]) for step, later in pairwise(known))
        if len(known) <= 10 and apart:
            axis.set_xticks(known)
        else:
            axis.xaxis.get_major_locator().set_params(integer=True)
    if len(found) > 1:
        axes[-1].legend(frameon=False, fontsize=9)
    return figure


def _percent(found: Sequence[Estimate | None]) -> list[Interval]:
    return [Estimate(*(100 * number for number in each)) for each in found if each is not None]
