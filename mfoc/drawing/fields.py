"""Functions of state and time: value functions, densities; and paths, each number over time.

This is below the public doors: it does not check its arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mfoc.drawing.clouds import law
from mfoc.drawing.scales import DASHES, Array, finite, say, whole_ticks
from mfoc.figures import COLORS, INK, new_axes, new_figure, style, tidy

_LINES = 6  # numbers of a state or a control that have a line each


def value_lines(x: Tensor, values: Mapping[str, Tensor], title: str, label: str = "x", note: str = "V") -> Any:
    """V over a scalar state, a line for each stage."""
    figure, (axis,) = new_axes(5.2, 3.8)
    for index, (name, line) in enumerate(values.items()):
        dash = DASHES[index % len(DASHES)]
        axis.plot(_array(x), _array(line), label=name, color=style(index)["color"], linestyle=dash, linewidth=1.8)
    axis.set(xlabel=label, ylabel=note, title=title)
    if len(values) > 1:
        axis.legend(frameon=False, handlelength=3)
    return figure


def value_map(first: Tensor, second: Tensor, values: Tensor, title: str, labels: tuple[str, str]) -> Any:
    """V over two states ``[n_1, n_2]`` by colour, with contours that are read in grey."""
    figure, (axis,) = new_axes(5.2, 4.0)
    heights = _array(values).T
    if not finite([heights]).size:
        say(axis, "not finite")
    else:
        filled = axis.contourf(_array(first), _array(second), heights, levels=18, cmap="cividis")
        axis.contour(_array(first), _array(second), heights, levels=filled.levels[::3], colors="white", linewidths=0.6)
        figure.colorbar(filled, ax=axis, label="V")
    axis.grid(False)
    axis.set(xlabel=labels[0], ylabel=labels[1], title=title)
    return figure


def value_slices(centre: Tensor, spread: Tensor, evaluate: Callable[[Tensor], Tensor], title: str) -> Any:
    """V along each coordinate ``[n]`` through a centre, the others held; a line each, in units of their spreads."""
    steps = torch.linspace(-2.5, 2.5, 101, dtype=centre.dtype, device=centre.device)
    along = {}
    for k in range(min(len(centre), _LINES)):
        x = centre.repeat(len(steps), 1)
        x[:, k] += steps * spread[k]
        along[f"along $x_{{{k + 1}}}$"] = evaluate(x)
    return value_lines(steps, along, title, "from the centre, in standard deviations of the state")


def density(times: Tensor, nodes: Array | None, m: Tensor, u: Tensor, title: str) -> Any:
    """A density over time ``[T+1, n]`` and the control that moves it ``[T, n]``, side by side."""
    figure = new_figure(9.2, 3.8)
    left, right = figure.subplots(1, 2)
    t = _array(times)
    places = range(m.shape[1] + 1)
    low, high = 0, m.shape[1]
    for axis, field, name, colors in ((left, m, "density m", "cividis"), (right, u, "control u", "PuOr")):
        shown = field.detach().cpu().double()
        whole = finite([shown.numpy()])
        top = float(abs(whole).max()) if whole.size else 1.0
        scale = {"vmin": -top or -1.0, "vmax": top or 1.0} if colors == "PuOr" else {"vmin": 0.0, "vmax": top or 1.0}
        edges = _edges(t, len(shown))
        mesh = axis.pcolormesh(edges, _edges_of(nodes, places), shown.numpy().T, cmap=colors, rasterized=True, **scale)
        figure.colorbar(mesh, ax=axis, label=name)
        tidy(axis)
        axis.grid(False)
        axis.set(xlabel="time", ylabel="state x" if nodes is not None else "node of the grid", title=name)
    mean = (m.double().cpu() * torch.arange(low, high).double()).sum(1) / m.double().cpu().sum(1)
    middle = _array(mean) if nodes is None else nodes[0] + (nodes[-1] - nodes[0]) * _array(mean) / max(high - 1, 1)
    left.plot(t, middle, color="white", linewidth=3)
    left.plot(t, middle, color=INK, linewidth=1.4, linestyle="--", label="mean")
    left.legend(frameon=True, fontsize=8)
    figure.suptitle(title, fontsize=11)
    return figure


def _edges(t: Array, count: int) -> Any:
    """Edges of so many cells along the time nodes: one more than there are."""
    if count < len(t):
        return t
    half = (t[1] - t[0]) / 2 if len(t) > 1 else 0.5
    return [t[0] - half, *((t[1:] + t[:-1]) / 2), t[-1] + half]


def _edges_of(nodes: Array | None, places: range) -> Any:
    return list(places) if nodes is None else _edges(nodes, len(nodes))


def paths(parts: Mapping[str, Tensor], times: Mapping[str, Tensor] | None, title: str, x_label: str) -> Any:
    """Numbers over time ``[K, n]``, a panel for each part ("state", "control"), a line for each number."""
    figure, axes = new_axes(max(5.2, 4.2 * len(parts)), 3.6, len(parts))
    for axis, (name, rows) in zip(axes, parts.items(), strict=True):
        values = _array(rows.detach().reshape(len(rows), -1))
        place = range(len(values)) if times is None else _array(times[name])
        for k in range(min(values.shape[1], _LINES)):
            dots = {"marker": "osD^vP"[k], "markersize": 3.5} if len(values) <= 60 else {}
            line = {"color": style(k)["color"], "linestyle": DASHES[k], "linewidth": max(1.2, 2.2 - 0.25 * k)}
            axis.plot(place, values[:, k], label=f"{name[0]}$_{{{k + 1}}}$", **line, **dots)
        more = f" ({values.shape[1] - _LINES} more)" if values.shape[1] > _LINES else ""
        axis.set(xlabel=x_label, ylabel=f"{name.partition(' ')[2] or name}{more}")
        if values.shape[1] > 1:
            axis.legend(frameon=False, fontsize=8, handlelength=3)
        if times is None:
            whole_ticks(axis)
        if not finite([values]).size:
            say(axis, "not finite")
    figure.suptitle(title, fontsize=11)
    return figure


def laws(parts: Sequence[tuple[str, Sequence[Tensor]]], title: str) -> Any:
    """Numbers of a population over the stages, each with bands: mean, and where most particles are.

    A part is a name and a cloud ``[N, n]`` at each stage.
    """
    panels = [
        (f"${name}_{{{k + 1}}}$", [cloud[:, k : k + 1].detach().cpu().double() for cloud in clouds])
        for name, clouds in parts
        for k in range(min(clouds[0].shape[1], 3))
    ]
    figure, axes = new_axes(max(5.2, 3.4 * len(panels)), 3.4, len(panels))
    for axis, (name, clouds) in zip(axes, panels, strict=True):
        law(axis, name, clouds, first=axis is axes[0])
    figure.suptitle(title, fontsize=11)
    return figure


def beside(left: Tensor, right: Tensor, labels: tuple[str, str], title: str, error: Tensor | None) -> Any:
    """Two numbers of each particle against one another, with the line where they agree; an error by stage beside it."""
    figure, axes = new_axes(4.6 if error is None else 8.8, 3.9, 1 if error is None else 2)
    x, y = _array(left), _array(right)
    axes[0].plot(x, y, "o", color=COLORS[0], markersize=4, alpha=0.6, markeredgewidth=0)
    whole = finite([x, y])
    if whole.size:
        ends = [float(whole.min()), float(whole.max())]
        axes[0].plot(ends, ends, color=INK, linewidth=1, linestyle="--", label="equal")
        axes[0].legend(frameon=False, fontsize=8)
    axes[0].set(xlabel=labels[0], ylabel=labels[1])
    if error is not None:
        axes[1].plot(_array(error), "s-", color=COLORS[1], markersize=4)
        axes[1].set(xlabel="stage t", ylabel="largest |dV/dx − p| / largest |p|")
        axes[1].set_ylim(bottom=0)
    figure.suptitle(title, fontsize=11)
    return figure


def _array(values: Tensor) -> Array:
    found: Array = values.detach().cpu().double().numpy()
    return found
