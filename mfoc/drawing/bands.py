"""Controls over the stages: each number where there are few, percentiles where there are many.

This is below the public doors: it does not check its arguments.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mfoc import tree
from mfoc.drawing.clouds import flat
from mfoc.drawing.scales import DASHES, Array, clipped, finite, say, whole_ticks
from mfoc.figures import COLORS, INK, new_figure, style, tidy, words
from mfoc.printing import by_identity

_LINES = 6  # numbers of a control that have a line each
_PANELS = 6  # leaves that are drawn
_DOTS = 60  # stages that have a marker each


@by_identity
class Leaf(NamedTuple):
    """One leaf of the controls as it is drawn.

    Attributes:
        name: its path, empty for the control itself.
        stages: its numbers at each stage: ``[m]``, ``[N, m]`` of a control per particle, or None where it is not.
        low, high: what its bounds say at each stage, shaped as its numbers; empty where they say nothing.
    """

    name: str
    stages: list[Tensor | None]
    low: list[Tensor]
    high: list[Tensor]


def by_stage(stages: Sequence[Any], limits: Sequence[tuple[Any, Any]], per_particle: bool) -> list[Leaf]:
    """The leaves of the controls u_0 .. u_(T-1), by name, with their bounds."""
    named = [tree.dotted(stage) for stage in stages]
    bounds = [[tree.dotted(side) for side in pair] for pair in limits]
    names = dict.fromkeys(name for one in named for name in one)
    kept = [name for name in names if any(tree.differentiable(one.get(name)) for one in named)]

    def numbers(leaf: Any) -> Tensor | None:
        if not isinstance(leaf, Tensor):
            return None
        return flat(leaf) if per_particle else flat(leaf[None])[0]

    leaves = []
    for name in kept:
        sides: list[list[Tensor]] = [[], []]
        for pair in bounds:
            for side, one in zip(sides, pair, strict=True):
                if (limit := numbers(one.get(name))) is not None:
                    side.append(limit)
        leaves.append(Leaf(name, [numbers(one.get(name)) for one in named], *sides))
    return leaves


def controls(leaves: Sequence[Leaf], *, shared: bool, title: str) -> Any:
    """A figure of the controls, a panel for each leaf; see ``mfoc.plot.controls``.

    Args:
        leaves: what is drawn.
        shared: one control for all stages: no stage is on the axes.
        title: of the figure.
    """
    shown = list(leaves[:_PANELS])
    columns = min(len(shown), 3)
    rows = -(-len(shown) // columns)
    figure = new_figure(max(6.0, 3.9 * columns), 0.5 + 2.9 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, leaf in zip(panels, shown, strict=False):
        tidy(axis, "both")
        (_of_all_stages if shared else _over_stages)(axis, leaf)
        axis.set_title(clipped(leaf.name, 34), fontsize=10)
    for axis in panels[len(shown) :]:
        axis.set_visible(False)
    _legend(figure, panels)
    rest = f"; {len(leaves) - len(shown)} more leaves are not shown" if len(leaves) > len(shown) else ""
    figure.suptitle(words(title) + rest, fontsize=11)
    return figure


def _over_stages(axis: Any, leaf: Leaf) -> None:
    whole = [stage for stage in leaf.stages if stage is not None]
    width = whole[0].shape[-1]
    alike = len(whole) == len(leaf.stages) and len({stage.shape for stage in whole}) == 1
    if alike and width <= _LINES and whole[0].dim() == 1:
        _lines(axis, torch.stack(whole).numpy())
    elif alike and width <= 3:
        for k in range(width):
            _population(axis, torch.stack(whole)[..., k].numpy(), k, width)
        axis.legend(frameon=False, fontsize=8)
    else:
        _percentiles(axis, [None if stage is None else stage.numpy().ravel() for stage in leaf.stages])
    _bounds(axis, leaf)
    axis.set(xlabel="stage t", ylabel="u")
    axis.set_xlim(-0.5, len(leaf.stages) - 0.5)
    whole_ticks(axis)
    if not finite([stage.numpy() for stage in whole]).size:
        say(axis, "not finite")


def _lines(axis: Any, values: Array) -> None:
    """Each number of the control: constant over a stage, so steps; with markers where there is room for them."""
    count, width = values.shape
    for k in range(width):
        dots = {"marker": "osD^vP"[k % 6], "markersize": 4} if count <= _DOTS else {}
        dash = DASHES[k % len(DASHES)]
        line = {"color": style(k)["color"], "linestyle": dash, "linewidth": max(1.2, 2.2 - 0.25 * k)}
        label = f"$u_{{{k + 1}}}$" if width > 1 else None
        axis.plot(range(count), values[:, k], drawstyle="steps-mid", label=label, **dots, **line)
    if width > 1:
        axis.legend(frameon=False, fontsize=8, ncols=2 if width > 3 else 1, handlelength=3)


def _population(axis: Any, values: Array, index: int, width: int) -> None:
    """One number of the controls of all particles ``[T, N]``: median, and where most particles are."""
    stages, color = range(len(values)), style(index)["color"]
    whole = np.where(np.isfinite(values), values, np.nan)
    ends = [_percentile(row, (5, 50, 95)) for row in whole]
    name = f"$u_{{{index + 1}}}$ " if width > 1 else ""
    shape = {"step": "mid", "color": color, "alpha": 0.25, "linewidth": 0}
    axis.fill_between(stages, [e[0] for e in ends], [e[2] for e in ends], label=f"{name}90% of particles", **shape)
    middle = {"drawstyle": "steps-mid", "color": color, "linewidth": 1.8, "linestyle": DASHES[index]}
    axis.plot(stages, [e[1] for e in ends], marker="os^"[index], markersize=3, label=f"{name}median", **middle)


def _percentiles(axis: Any, stages: Sequence[Array | None]) -> None:
    """Many numbers at each stage: their range, the middle 80%, and the median."""
    ends = np.array([_percentile(np.zeros(0) if one is None else one, (0, 10, 50, 90, 100)) for one in stages])
    places = np.arange(len(stages))
    if len(stages) <= _DOTS:
        axis.vlines(places, ends[:, 0], ends[:, 4], color=COLORS[0], linewidth=1, alpha=0.6, label="all")
        axis.vlines(places, ends[:, 1], ends[:, 3], color=COLORS[0], linewidth=5, alpha=0.45, label="middle 80%")
        axis.plot(places, ends[:, 2], "o", color=INK, markersize=4, label="median")
        return
    axis.fill_between(places, ends[:, 0], ends[:, 4], color=COLORS[0], alpha=0.15, linewidth=0, label="all")
    axis.fill_between(places, ends[:, 1], ends[:, 3], color=COLORS[0], alpha=0.35, linewidth=0, label="middle 80%")
    axis.plot(places, ends[:, 2], color=INK, linewidth=1.4, label="median")


def _percentile(values: Array, at: tuple[int, ...]) -> Array:
    whole = finite([values])
    return np.percentile(whole, at) if whole.size else np.full(len(at), math.nan)


def _of_all_stages(axis: Any, leaf: Leaf) -> None:
    """One control for all stages: its numbers side by side, or how they are spread where there are many."""
    first = leaf.stages[0]
    assert first is not None
    values = first.numpy().ravel()
    whole = finite([values])
    if not whole.size:
        say(axis, "not finite")
    elif len(values) <= 40:
        axis.vlines(np.arange(len(values)), np.minimum(values, 0), np.maximum(values, 0), color=COLORS[0], alpha=0.5)
        axis.plot(np.arange(len(values)), values, "o", color=COLORS[0], markersize=5)
        axis.axhline(0, color=INK, linewidth=0.8)
        axis.set(xlabel="entry", ylabel="u", xlim=(-0.6, len(values) - 0.4))
        whole_ticks(axis)
        _bounds(axis, leaf)
    else:
        axis.hist(whole, bins=min(60, max(10, round(math.sqrt(len(whole))))), color=COLORS[0], alpha=0.8)
        axis.set(xlabel="u", ylabel=f"of {len(values):,} entries")


def _bounds(axis: Any, leaf: Leaf) -> None:
    """The box that controls lie in, where it is the same for all of their numbers and at all stages."""
    for side in (leaf.low, leaf.high):
        values = finite([limit.numpy() for limit in side])
        if values.size and values.min() == values.max() and all(bool(limit.isfinite().all()) for limit in side):
            axis.axhline(values[0], color=INK, linewidth=1, linestyle=(0, (1, 2)), zorder=1)
            where = {
                "xycoords": ("axes fraction", "data"),
                "textcoords": "offset points",
                "va": "bottom",
                "ha": "right",
            }
            axis.annotate("bound", (1, values[0]), (0, 1), fontsize=7.5, color=INK, **where)


def _legend(figure: Any, panels: Sequence[Any]) -> None:
    """One legend below all panels of percentiles, where it covers none of them."""
    for axis in panels:
        handles, names = axis.get_legend_handles_labels()
        if axis.get_legend() is None and handles:
            figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
            return
