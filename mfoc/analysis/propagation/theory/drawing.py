"""The figure of a phase diagram."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mfoc.errors import InvalidValue, require
from mfoc.figures import INK, new_figure

if TYPE_CHECKING:
    from mfoc.analysis.propagation.theory.phases import PhaseDiagram

_SHADES = {"ordered": "#cfe3f1", "chaotic": "#fbe0cb"}  # pale blue and orange, of Okabe & Ito's hues
_DEEPEST = 1e3
_LEVELS = (1, 2, 5, 10, 20, 50, 100)


def draw(diagram: PhaseDiagram) -> Any:
    """Phases shaded, the critical line, contours of xi_c: a ``matplotlib.figure.Figure``.

    Raises:
        InvalidValue: a grid of fewer than two values a side.
    """
    x, y = diagram.weight_variances.numpy(), diagram.bias_variances.numpy()
    if len(x) < 2 or len(y) < 2:
        raise InvalidValue(
            f"the diagram has {len(x)} x {len(y)} points; expected at least 2 x 2, for a figure of some area"
        )
    figure = new_figure(7.4, 4.8)
    axis = figure.subplots()
    _shade(axis, diagram)
    _contours(axis, diagram)
    line = diagram.critical_line.numpy()
    if len(line):
        dots = {"marker": "o", "markersize": 8, "linestyle": ""} if len(line) == 1 else {"linewidth": 2}
        label = "critical point  $\\chi_1 = 1$" if len(line) == 1 else "critical line  $\\chi_1 = 1$"
        axis.plot(line[:, 0], line[:, 1], color="black", clip_on=len(line) > 1, zorder=4, label=label, **dots)
    axis.plot([], [], color=INK, linewidth=0.9, label="depth scale $\\xi_c$, in layers")
    axis.set_xlim(float(x[0]), float(x[-1]))
    axis.set_ylim(float(y[0]), float(y[-1]))
    axis.set_xlabel("variance of the weights  $\\sigma_w^2$")
    axis.set_ylabel("variance of the biases  $\\sigma_b^2$")
    axis.set_title(f"Phases of a deep {diagram.activation} network", loc="left", fontsize=11)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def _shade(axis: Any, diagram: PhaseDiagram) -> None:
    x, y = diagram.weight_variances.numpy(), diagram.bias_variances.numpy()
    colors = require("matplotlib.colors", "plot").ListedColormap(["white", _SHADES["ordered"], _SHADES["chaotic"]])
    shown = torch.where(diagram.codes.abs() == 1, diagram.codes, 1).where(diagram.codes != 2, -3)
    shown = torch.where(shown == -3, 0, torch.where(shown == -1, 1, 2))
    axis.pcolormesh(x, y, shown.mT.numpy(), cmap=colors, vmin=0, vmax=2, shading="nearest", rasterized=True, zorder=0)
    ordered = diagram.codes == -1
    diverging = diagram.q_star.isinf()
    _label(axis, diagram, ordered, "ordered\ngradients vanish")
    _label(axis, diagram, (diagram.codes == 1) & ~diverging, "chaotic\ngradients explode")
    if bool(diverging.any()):
        _label(axis, diagram, diverging, "chaotic\ngradients explode,\nthe variance diverges")
        inside = diverging.double().mT.numpy()
        if float(inside.min()) < 1:
            area = axis.contourf(x, y, inside, levels=[0.5, 1.5], colors="none", hatches=["/"], zorder=1)
            area.set(edgecolor="#d9b191", linewidth=0)
    _label(axis, diagram, diagram.codes == 2, "no fixed point")


def _label(axis: Any, diagram: PhaseDiagram, where: Tensor, text: str) -> None:
    """In the middle of a region, where it is large enough to hold the words."""
    if float(where.double().mean()) < 0.04:
        return
    row, column = _deepest(where)
    box = {"boxstyle": "round,pad=0.3", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
    place = float(diagram.weight_variances[row]), float(diagram.bias_variances[column])
    axis.text(*place, text, ha="center", va="center", fontsize=10, color=INK, bbox=box, zorder=5)


def _deepest(where: Tensor) -> tuple[int, int]:
    """The point farthest from the region's edge, by eroding it (the frame counts as an edge)."""
    height, width = where.shape
    size = 48
    small = torch.nn.functional.interpolate(where[None, None].double(), size=(size, size), mode="nearest")
    left = small
    while bool(left.any()):
        small, left = (
            left,
            1 - torch.nn.functional.max_pool2d(torch.nn.functional.pad(1 - left, (1, 1, 1, 1), value=1.0), 3, stride=1),
        )
    places = small[0, 0].nonzero().double()
    row, column = places[(places - places.mean(0)).square().sum(1).argmin()].tolist()
    return min(height - 1, round((row + 0.5) / size * height)), min(width - 1, round((column + 0.5) / size * width))


def _contours(axis: Any, diagram: PhaseDiagram) -> None:
    """Of ln xi_c, which is infinite on the line: cut off far above the highest contour."""
    scale = diagram.xi_c.nan_to_num(nan=math.nan, posinf=_DEEPEST).clamp(1e-3, _DEEPEST).log()
    scale[diagram.q_star.isinf()] = math.nan
    known = scale[scale.isfinite()]
    levels = [level for level in _LEVELS if len(known) and float(known.min()) < math.log(level) < float(known.max())]
    if not levels:
        return
    x, y = diagram.weight_variances.numpy(), diagram.bias_variances.numpy()
    masked = require("numpy.ma", "plot").masked_invalid(scale.mT.numpy())
    lines = axis.contour(
        x, y, masked, levels=[math.log(level) for level in levels], colors=INK, linewidths=0.9, zorder=2
    )
    axis.clabel(lines, fmt={math.log(level): str(level) for level in levels}, fontsize=8, inline_spacing=3)
